// Matching on CUDA. Nothing waits for the device; results are complete when the stream gets there.
#pragma once

#include "problem.h"

namespace predet {
namespace hungarian {

// Bytes of device memory that a call needs beside its inputs and outputs.
int64_t match_cuda_bytes(const Match& match);
int64_t assign_cuda_bytes(const Assignment& assignment);

// All addresses but those of `first` are on the device. A target whose class is not in [0, K) has
// costs that are not finite. Results are those of the CPU to the bit.
void match_cuda(const Match& match, void* workspace, int device, void* stream);
void assign_cuda(const Assignment& assignment, void* workspace, int device, void* stream);

}  // namespace hungarian
}  // namespace predet
