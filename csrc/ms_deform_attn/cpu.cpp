// How the work is cut: by head, because heads share nothing and one head's maps fit into a cache.
//
// A head's pixels lie far apart in the value (H * C numbers from one to the next), which uses few
// cache sets and many memory pages. With enough queries a packed copy of the head pays for itself.
#include "cpu.h"

#include <algorithm>
#include <cstring>
#include <limits>

#include "../common/buffer.h"
#include "../common/cpu_features.h"
#include "../common/parallel.h"

namespace predet {
namespace ms_deform_attn {
namespace {

Kernels choose_kernels(DType type) {
  switch (instruction_set()) {
#if defined(PREDET_WITH_AVX512)
    case InstructionSet::avx512: return kernels_avx512(type);
#endif
#if defined(PREDET_WITH_AVX2)
    case InstructionSet::avx2: return kernels_avx2(type);
#endif
    default: return kernels_baseline(type);
  }
}

constexpr int64_t kQueriesOfTurn = 32;

// Packing reads and writes each pixel once; sampling without it pays for each of 4 Q L P pixels.
// Kernels count in 32 bits, which may be too few for an unpacked head.
bool packing_pays(const Problem& p) {
  return 2 * p.queries * p.points_of_head() > p.pixels ||
         p.pixels * p.heads * p.channels > std::numeric_limits<int32_t>::max();
}

// Whole heads are the cheapest tasks. They are too few for this many threads if some would idle
// for more than a fifth of the time.
bool whole_heads_fill(int64_t heads, int64_t threads) {
  const int64_t rounds = (heads + threads - 1) / threads;
  return rounds * threads * 4 <= heads * 5;
}

int64_t bytes_of(DType type) {
  return type == DType::float64 ? 8 : type == DType::float32 ? 4 : 2;
}

// The range of `count` things that part `index` of `parts` takes.
struct Share {
  int64_t first, last;
  Share(int64_t count, int64_t index, int64_t parts)
      : first(count * index / parts), last(count * (index + 1) / parts) {}
};

class Run {
 public:
  Run(const Problem& problem, int threads)
      : p_(problem),
        k_(choose_kernels(problem.value_type)),
        heads_(problem.batch * problem.heads),
        threads_(int(std::max<int64_t>(1, std::min<int64_t>(threads, 1024)))),
        head_bytes_(Buffer::round_up(problem.pixels * problem.channels * k_.arithmetic_bytes)),
        scratch_bytes_(Buffer::round_up(k_.scratch_bytes(problem))) {}

 protected:
  HeadTask task_of(int64_t head, char* scratch) const {
    HeadTask task{};
    task.image = head / p_.heads;
    task.head = head % p_.heads;
    task.first_query = 0;
    task.last_query = p_.queries;
    const int64_t offset =
        (task.image * p_.pixels * p_.heads + task.head) * p_.channels * bytes_of(p_.value_type);
    task.value = static_cast<const char*>(p_.value) + offset;
    task.value_stride = p_.heads * p_.channels;
    task.only_level = -1;
    task.scratch = scratch;
    return task;
  }

  void use_packed_value(HeadTask& task, const char* packed) const {
    task.value = packed;
    task.value_stride = p_.channels;
  }

  // How many queries to take at a time, so that all threads have work to the end.
  int64_t queries_of_turn(int64_t queries) const {
    const int64_t wanted = threads_ == 1 ? kQueriesOfTurn : queries / (int64_t(threads_) * 4);
    return std::max<int64_t>(4, std::min(wanted, kQueriesOfTurn));
  }

  void take_turn(HeadTask& task, int64_t turn, int64_t queries) const {
    task.first_query = turn * queries;
    task.last_query = std::min(p_.queries, task.first_query + queries);
  }

  // Of each head, how many parts to make so that all threads have work to the end.
  int64_t parts_of(int64_t heads, int64_t items) const {
    const int64_t wanted = (int64_t(threads_) * 8 + heads - 1) / heads;
    return std::max<int64_t>(1, std::min(wanted, items));
  }

  const Problem& p_;
  const Kernels k_;
  const int64_t heads_;
  const int threads_;
  const int64_t head_bytes_, scratch_bytes_;
};

class Forward : Run {
 public:
  using Run::Run;

  void run() {
    if (!packing_pays(p_)) {
      unpacked();
    } else if (whole_heads_fill(heads_, threads_)) {
      whole_heads();
    } else {
      split_heads();
    }
  }

 private:
  // All heads of a few queries, then the next ones: heads look at pixels that lie side by side.
  void unpacked() {
    const int64_t each = queries_of_turn(p_.batch * p_.queries);
    const int64_t turns = (p_.queries + each - 1) / each;
    Buffer scratch(scratch_bytes_ * threads_);
    parallel_for(p_.batch * turns, threads_, [&](int64_t i, int worker) {
      for (int64_t head = 0; head < p_.heads; ++head) {
        HeadTask task =
            task_of(i / turns * p_.heads + head, scratch.at(scratch_bytes_ * worker));
        take_turn(task, i % turns, each);
        k_.forward(p_, task);
      }
    });
  }

  void whole_heads() {
    const int64_t each = scratch_bytes_ + head_bytes_;
    Buffer buffer(each * threads_);
    parallel_for(heads_, threads_, [&](int64_t head, int worker) {
      char* own = buffer.at(each * worker);
      char* packed = own + scratch_bytes_;
      HeadTask task = task_of(head, own);
      k_.pack(p_, task.image, task.head, 0, p_.pixels, packed);
      use_packed_value(task, packed);
      k_.forward_packed(p_, task);
    });
  }

  void split_heads() {
    const int64_t group = std::min<int64_t>(heads_, threads_);
    Buffer scratch(scratch_bytes_ * threads_), packed(head_bytes_ * group);
    for (int64_t first = 0; first < heads_; first += group) {
      const int64_t size = std::min(group, heads_ - first);
      const int64_t pixel_parts = parts_of(size, p_.pixels);
      parallel_for(size * pixel_parts, threads_, [&](int64_t i, int) {
        const int64_t head = first + i / pixel_parts;
        const Share pixels(p_.pixels, i % pixel_parts, pixel_parts);
        k_.pack(p_, head / p_.heads, head % p_.heads, pixels.first, pixels.last,
                packed.at(head_bytes_ * (i / pixel_parts)));
      });
      const int64_t parts = parts_of(size, p_.queries);
      parallel_for(size * parts, threads_, [&](int64_t i, int worker) {
        HeadTask task = task_of(first + i / parts, scratch.at(scratch_bytes_ * worker));
        const Share queries(p_.queries, i % parts, parts);
        task.first_query = queries.first;
        task.last_query = queries.last;
        use_packed_value(task, packed.at(head_bytes_ * (i / parts)));
        k_.forward_packed(p_, task);
      });
    }
  }
};

class Backward : Run {
 public:
  Backward(const Problem& problem, int threads)
      : Run(problem, threads),
        want_value_(problem.grad_value != nullptr),
        want_points_(problem.grad_given != nullptr || problem.grad_weights != nullptr ||
                     problem.grad_reference != nullptr),
        packed_(packing_pays(problem) || bytes_of(problem.value_type) != k_.arithmetic_bytes),
        grad_reference_(problem.grad_reference == nullptr
                            ? 0
                            : heads_ * problem.queries * problem.levels *
                                  problem.reference_size * k_.arithmetic_bytes) {}

  void run() {
    if (want_value_ && !packed_) clear_gradient();
    if (whole_heads_fill(heads_, threads_)) {
      if (packed_) {
        whole_heads();
      } else {
        unpacked_heads();
      }
    } else {
      split_heads();
    }
    if (p_.grad_reference != nullptr) {
      if (k_.arithmetic_bytes == 8) {
        add_heads<double>();
      } else {
        add_heads<float>();
      }
    }
  }

 private:
  // One head's maps; with `packed` they lie there, else where the caller has them.
  HeadTask backward_task(int64_t head, char* scratch, char* value, char* gradient) {
    HeadTask task = task_of(head, scratch);
    task.grad_points = want_points_;
    if (want_value_) {
      const auto* start = static_cast<const char*>(p_.value);
      task.grad_value = static_cast<char*>(p_.grad_value) +
                        (static_cast<const char*>(task.value) - start);
    }
    if (packed_) {
      use_packed_value(task, value);
      if (want_value_) task.grad_value = gradient;
    }
    if (p_.grad_reference != nullptr) task.grad_reference = grad_reference_.at(0);
    return task;
  }

  void clear_gradient() {
    const int64_t bytes =
        p_.batch * p_.pixels * p_.heads * p_.channels * bytes_of(p_.value_type);
    parallel_for(threads_, threads_, [&](int64_t i, int) {
      const Share part(bytes, i, threads_);
      std::memset(static_cast<char*>(p_.grad_value) + part.first, 0, part.last - part.first);
    });
  }

  void pack(int64_t head, const Share& pixels, char* value, char* gradient) const {
    if (want_points_) {
      k_.pack(p_, head / p_.heads, head % p_.heads, pixels.first, pixels.last, value);
    }
    if (want_value_) {
      const int64_t pixel_bytes = p_.channels * k_.arithmetic_bytes;
      std::memset(gradient + pixels.first * pixel_bytes, 0,
                  (pixels.last - pixels.first) * pixel_bytes);
    }
  }

  void unpack(int64_t head, const Share& pixels, const char* gradient) const {
    k_.unpack(p_, head / p_.heads, head % p_.heads, pixels.first, pixels.last, gradient);
  }

  int64_t value_bytes() const { return packed_ && want_points_ ? head_bytes_ : 0; }
  int64_t gradient_bytes() const { return packed_ && want_value_ ? head_bytes_ : 0; }

  void whole_heads() {
    const int64_t each = scratch_bytes_ + value_bytes() + gradient_bytes();
    Buffer buffer(each * threads_);
    const Share all(p_.pixels, 0, 1);
    parallel_for(heads_, threads_, [&](int64_t head, int worker) {
      char* own = buffer.at(each * worker);
      char* value = own + scratch_bytes_;
      char* gradient = value + value_bytes();
      pack(head, all, value, gradient);
      k_.backward(p_, backward_task(head, own, value, gradient));
      if (want_value_) unpack(head, all, gradient);
    });
  }

  // Each thread some heads, a few queries at a time, as in the forward pass.
  void unpacked_heads() {
    Buffer scratch(scratch_bytes_ * threads_);
    const int64_t groups = std::min<int64_t>(heads_, threads_);
    parallel_for(groups, threads_, [&](int64_t group, int worker) {
      const Share heads(heads_, group, groups);
      for (int64_t turn = 0; turn * kQueriesOfTurn < p_.queries; ++turn) {
        for (int64_t head = heads.first; head < heads.last; ++head) {
          HeadTask task =
              backward_task(head, scratch.at(scratch_bytes_ * worker), nullptr, nullptr);
          take_turn(task, turn, kQueriesOfTurn);
          k_.backward(p_, task);
        }
      }
    });
  }

  // The gradient of the value is added up by one thread for each level, that of the points is
  // independent for each query.
  void split_heads() {
    const int64_t group = std::min<int64_t>(heads_, threads_);
    Buffer scratch(scratch_bytes_ * threads_);
    Buffer values(value_bytes() * group), gradients(gradient_bytes() * group);
    for (int64_t first = 0; first < heads_; first += group) {
      const int64_t size = std::min(group, heads_ - first);
      const int64_t pixel_parts = parts_of(size, p_.pixels);
      const auto for_pixels = [&](auto&& body) {
        parallel_for(size * pixel_parts, threads_, [&](int64_t i, int) {
          const int64_t slot = i / pixel_parts;
          body(first + slot, Share(p_.pixels, i % pixel_parts, pixel_parts),
               values.at(value_bytes() * slot), gradients.at(gradient_bytes() * slot));
        });
      };
      if (packed_) for_pixels([&](auto... arguments) { pack(arguments...); });
      const int64_t levels = want_value_ ? p_.levels : 0;
      const int64_t parts = want_points_ ? parts_of(size, p_.queries) : 0;
      parallel_for(size * (levels + parts), threads_, [&](int64_t i, int worker) {
        const int64_t slot = i % size, work = i / size;
        HeadTask task =
            backward_task(first + slot, scratch.at(scratch_bytes_ * worker),
                          values.at(value_bytes() * slot), gradients.at(gradient_bytes() * slot));
        if (work < levels) {
          task.grad_points = false;
          task.only_level = work;
        } else {
          const Share queries(p_.queries, work - levels, parts);
          task.first_query = queries.first;
          task.last_query = queries.last;
          task.grad_value = nullptr;
        }
        k_.backward(p_, task);
      });
      if (packed_ && want_value_) {
        for_pixels([&](int64_t head, const Share& pixels, char*, char* gradient) {
          unpack(head, pixels, gradient);
        });
      }
    }
  }

  // The reference is shared by all heads of a query.
  template <typename A>
  void add_heads() {
    const int64_t row = p_.queries * p_.levels * p_.reference_size;
    const A* from = reinterpret_cast<const A*>(grad_reference_.at(0));
    A* to = static_cast<A*>(p_.grad_reference);
    for (int64_t image = 0; image < p_.batch; ++image) {
      for (int64_t i = 0; i < row; ++i) {
        A sum = A(0);
        for (int64_t h = 0; h < p_.heads; ++h) sum += from[(image * p_.heads + h) * row + i];
        to[image * row + i] = sum;
      }
    }
  }

  const bool want_value_, want_points_;
  const bool packed_;
  Buffer grad_reference_;
};

}  // namespace

void forward_cpu(const Problem& problem, int threads) { Forward(problem, threads).run(); }

void backward_cpu(const Problem& problem, int threads) { Backward(problem, threads).run(); }

}  // namespace ms_deform_attn
}  // namespace predet
