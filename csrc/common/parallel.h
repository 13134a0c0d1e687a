// A pool of threads for loops whose result does not depend on who runs which task.
#pragma once

#include <cstdint>

namespace predet {

// Called with the task's index and with a worker's index in [0, threads).
using Task = void (*)(void* context, int64_t task, int worker);

// Runs tasks 0 .. count-1, each once, on at most `threads` threads including the caller's, and
// returns when all are done. Tasks are handed out one by one, so a late or busy thread delays
// nobody. In a forked child a new pool is made. A call from within another one runs in place.
void parallel_for(int64_t count, int threads, Task task, void* context);

template <typename Function>
void parallel_for(int64_t count, int threads, Function&& function) {
  parallel_for(
      count, threads,
      [](void* context, int64_t task, int worker) {
        (*static_cast<Function*>(context))(task, worker);
      },
      &function);
}

}  // namespace predet
