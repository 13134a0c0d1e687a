#!/usr/bin/env python
"""Train or evaluate what a LazyConfig file describes; the same as the command `predet-train`.

Run: tools/lazyconfig_train_net.py --config-file configs/selftrain_o365.py --num-gpus 8
"""

from predet.engine.train_net import main

if __name__ == "__main__":
    main()
