#include "parallel.h"

#include <atomic>
#include <condition_variable>
#include <mutex>
#include <system_error>
#include <thread>

#if defined(__unix__) || defined(__APPLE__)
#include <pthread.h>
#define PREDET_HAS_FORK 1
#endif
#if defined(__SSE__)
#include <xmmintrin.h>
#endif

namespace predet {
namespace {

// Workers round and flush denormals as the caller does; else a result could depend on the thread.
struct FloatingPointMode {
#if defined(__SSE__)
  unsigned int mode = _mm_getcsr();
  void apply() const { _mm_setcsr(mode); }
#else
  void apply() const {}
#endif
};

struct Job {
  Task task;
  void* context;
  int64_t count;
  FloatingPointMode mode;
  std::atomic<int64_t> next{0};

  void run(int worker) {
    for (int64_t i = next.fetch_add(1, std::memory_order_relaxed); i < count;
         i = next.fetch_add(1, std::memory_order_relaxed)) {
      task(context, i, worker);
    }
  }
};

class Pool {
 public:
  std::mutex in_use;  // held by the one caller whose job is running

  void run(Job& job, int helpers) {
    helpers = grow(helpers);
    {
      std::lock_guard<std::mutex> lock(mutex_);
      job_ = &job;
      free_places_ = helpers;
    }
    for (int i = 0; i < helpers; ++i) wake_.notify_one();
    job.run(0);
    std::unique_lock<std::mutex> lock(mutex_);
    job_ = nullptr;  // who has not come by now is not needed any more
    done_.wait(lock, [this] { return active_ == 0; });
  }

 private:
  // Returns how many helpers there are, at most `helpers`: fewer where the system refuses threads.
  int grow(int helpers) {
    try {
      for (; size_ < helpers; ++size_) std::thread([this] { serve(); }).detach();
    } catch (const std::system_error&) {
    }
    return size_ < helpers ? size_ : helpers;
  }

  void serve() {
    std::unique_lock<std::mutex> lock(mutex_);
    for (;;) {
      wake_.wait(lock, [this] { return job_ != nullptr && free_places_ > 0; });
      Job* job = job_;
      const int worker = free_places_--;
      ++active_;
      lock.unlock();
      job->mode.apply();
      job->run(worker);
      lock.lock();
      if (--active_ == 0) done_.notify_one();
    }
  }

  std::mutex mutex_;
  std::condition_variable wake_, done_;
  Job* job_ = nullptr;
  int free_places_ = 0;
  int active_ = 0;
  int size_ = 0;
};

// Never destroyed: its threads sleep until the process ends. A forked child has none of the
// parent's threads, so it forgets the parent's pool and makes its own when it first needs one.
std::atomic<Pool*> shared_pool{nullptr};

Pool& pool() {
#if defined(PREDET_HAS_FORK)
  static const int registered =
      pthread_atfork(nullptr, nullptr, [] { shared_pool.store(nullptr); });
  (void)registered;
#endif
  Pool* current = shared_pool.load();
  if (current == nullptr) {
    Pool* fresh = new Pool;
    if (shared_pool.compare_exchange_strong(current, fresh)) return *fresh;
    delete fresh;
  }
  return *current;
}

}  // namespace

void parallel_for(int64_t count, int threads, Task task, void* context) {
  Job job{task, context, count, {}, {}};
  if (threads > count) threads = static_cast<int>(count);
  if (threads > 1) {
    Pool& shared = pool();
    std::unique_lock<std::mutex> turn(shared.in_use, std::try_to_lock);
    if (turn.owns_lock()) {
      shared.run(job, threads - 1);
      return;
    }
  }
  job.run(0);
}

}  // namespace predet
