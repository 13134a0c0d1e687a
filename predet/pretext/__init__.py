"""What pre-training adds to a detector, in parts that fit any box source and any detector."""
