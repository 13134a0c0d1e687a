// Exact assignment of targets to queries at the lowest total cost: shortest augmenting paths with
// dual prices in fp64 (Kuhn; Jonker and Volgenant), arranged for few rows and many columns.
//
// A column that is not assigned has price 0, so all that a row needs to know of those columns is
// the lowest cost among them, found in the cost's own precision from bounds of blocks of columns.
// Prices and path lengths concern only the assigned columns, at most as many as there are rows:
// their costs are gathered, row by row as rows are met, into a small dense matrix. So a search
// costs what the assigned columns cost, and not what all columns do.
//
// A row may be wanted several times (`copies`): it then owns that many columns under one price, and
// its costs are neither repeated nor scanned again.
//
// Equal costs: the column of lowest index wins, a column that is free before one that is not. The
// result depends on nothing but the numbers, neither on the group's size nor on the processor.
//
// `Group` is who does the work together (group.h). A cost that is not finite counts as kBadCost.
#pragma once

#include "group.h"

namespace predet {
namespace hungarian {
inline namespace PREDET_ISA {

PREDET_HOST_DEVICE int64_t blocks_of(int64_t columns) { return (columns + kBlock - 1) / kBlock; }

// The memory of one problem, in bytes from an address that is a multiple of 64. Rows are the shorter
// side: with more copies of targets than queries, the problem is transposed into here first.
template <typename T>
struct Workspace {
  // Of rows.
  T* bound;           // (rows, bound_stride): at most the lowest cost of the block's free columns
  T* near;            // (rows, near_stride): costs of the columns that slots stand for
  double* price;      // dual of the row
  double* reach;      // length of the path to the row in the present search
  T* lowest;          // cost of `nearest`
  int32_t* nearest;   // free column of lowest cost when last looked for, -1: never
  int32_t* gathered;  // slots whose costs `near` has
  int32_t* entered;   // slot through which the search came to the row
  int32_t* tree;      // rows that the search has reached, in order
  int32_t* owned;     // (rows, copies): slots of the row
  int32_t* owns;      // how many
  // Of slots: the k-th column to be assigned is slot k for good.
  double* discount;  // minus the dual of its column, >= 0
  double* open;      // the same during a search, infinite where the search has been
  double* key;       // length of the shortest path found to it, infinite where it has been
  int64_t* from;     // row before it on that path
  int32_t* column;
  int32_t* owner;
  // Of columns.
  T* barrier;     // what the column seems to cost at least: infinite once it is assigned
  T* transposed;  // only with more copies of targets than queries

  int64_t rows, columns, slots, bound_stride, near_stride, bytes;

  // With a null address it only counts the bytes.
  PREDET_HOST_DEVICE Workspace(void* memory, int64_t targets, int64_t queries, int64_t copies)
      : next_(static_cast<char*>(memory)) {
    const int64_t wanted = targets * copies;
    const bool turned = wanted > queries;
    rows = turned ? queries : targets;
    columns = turned ? wanted : queries;
    slots = turned ? queries : wanted;
    bound_stride = padded(blocks_of(columns));
    near_stride = padded(slots);
    bytes = 0;
    bound = take<T>(rows * bound_stride);
    near = take<T>(rows * near_stride);
    price = take<double>(rows);
    reach = take<double>(rows);
    lowest = take<T>(rows);
    nearest = take<int32_t>(rows);
    gathered = take<int32_t>(rows);
    entered = take<int32_t>(rows);
    tree = take<int32_t>(rows);
    owned = take<int32_t>(slots);
    owns = take<int32_t>(rows);
    discount = take<double>(slots);
    open = take<double>(near_stride);
    key = take<double>(near_stride);
    from = take<int64_t>(near_stride);
    column = take<int32_t>(slots);
    owner = take<int32_t>(slots);
    barrier = take<T>(columns);
    transposed = take<T>(turned ? rows * columns : 0);
  }

 private:
  char* next_;

  template <typename U>
  PREDET_HOST_DEVICE U* take(int64_t count) {
    const int64_t size = (count * int64_t(sizeof(U)) + 63) / 64 * 64;
    U* taken = reinterpret_cast<U*>(next_);
    if (next_ != nullptr) next_ += size;
    bytes += size;
    return taken;
  }
};

// Fills the workspace's bounds; returns how many costs are not finite.
template <typename Group, typename T>
PREDET_HOST_DEVICE int64_t bound_blocks(const Group& group, const T* cost, int64_t stride,
                                        const Workspace<T>& w) {
  const int64_t blocks = blocks_of(w.columns);
  int64_t bad = 0;
  for (int64_t row = 0; row < w.rows; ++row) {
    for (int64_t b = 0; b < w.bound_stride; ++b) {
      T least = infinity<T>();
      if (b < blocks) {
        const int64_t left = w.columns - b * kBlock;
        const int32_t count = left < kBlock ? int32_t(left) : kBlock;
        least = group.bound(cost + row * stride + b * kBlock, count, bad);
      }
      if (group.leads()) w.bound[row * w.bound_stride + b] = least;
    }
  }
  group.sync();
  return group.sum(bad);
}

template <typename Group, typename T>
class Solver {
 public:
  // The cost has `stride` numbers from row to row, and the workspace's bounds are those of the
  // cost. rows * copies <= columns.
  PREDET_HOST_DEVICE Solver(const Group& group, const Workspace<T>& workspace, const T* cost,
                            int64_t stride, int32_t copies)
      : group_(group), w_(workspace), cost_(cost), stride_(stride), copies_(copies) {}

  // Afterwards row i owns the columns w.column[w.owned[i * copies + k]].
  PREDET_HOST_DEVICE void run() {
    start();
    for (int32_t row = 0; row < w_.rows; ++row) {
      int32_t copy = take_lowest(row) ? 1 : 0;
      for (; copy < copies_; ++copy) {
        search(row);
        settle();
        augment(row);
      }
    }
  }

 private:
  PREDET_HOST_DEVICE void start() {
    for (int64_t i = group_.lane(); i < w_.rows; i += group_.lanes()) {
      w_.price[i] = 0;
      w_.nearest[i] = -1;
      w_.gathered[i] = 0;
      w_.owns[i] = 0;
    }
    for (int64_t j = group_.lane(); j < w_.columns; j += group_.lanes()) {
      w_.barrier[j] = -infinity<T>();
    }
    group_.sync();
  }

  // A new row whose lowest cost is that of a free column needs no search.
  PREDET_HOST_DEVICE bool take_lowest(int32_t row) {
    bool at_once = false;
    const Found<T> free = nearest_free(row, at_once);
    if (!at_once) return false;
    if (group_.leads()) w_.price[row] = double(free.value);
    end_row_ = row;
    end_column_ = free.index;
    augment(row);
    return true;
  }

  // Grows a tree of shortest paths from `root` until a free column is nearer than any other.
  PREDET_HOST_DEVICE void search(int32_t root) {
    for (int32_t a = group_.lane(); a < padded(slots_); a += group_.lanes()) {
      w_.open[a] = a < slots_ ? w_.discount[a] : infinity<double>();
      w_.key[a] = infinity<double>();
    }
    group_.sync();
    reached_ = 0;
    int32_t row = root;
    double length = 0;
    for (;;) {
      enter(row, length);
      bool at_once = false;
      const Found<T> free = nearest_free(row, at_once);
      const double base = length - w_.price[row];
      const double end = base + double(free.value);
      // The root's column is taken whatever it costs, so numbers beyond fp64 cannot leave none.
      if (row == root || end < end_) {
        end_ = end;
        end_row_ = row;
        end_column_ = free.index;
      }
      gather(row);
      const Found<double> next = group_.relax(w_.near + row * w_.near_stride, w_.open, base, row,
                                              slots_, w_.key, w_.from);
      if (!(next.value < end_)) return;
      row = w_.owner[next.index];
      length = next.value;
      if (group_.leads()) w_.entered[row] = next.index;
    }
  }

  PREDET_HOST_DEVICE void enter(int32_t row, double length) {
    if (group_.leads()) {
      w_.tree[reached_] = row;
      w_.reach[row] = length;
    }
    ++reached_;
    // The row's own columns are as near as the row, and lead nowhere else.
    const int32_t* own = w_.owned + int64_t(row) * copies_;
    for (int32_t k = group_.lane(); k < w_.owns[row]; k += group_.lanes()) {
      w_.open[own[k]] = infinity<double>();
      w_.key[own[k]] = infinity<double>();
    }
    group_.sync();
  }

  // The free column of lowest cost. The bound of a block is too low once its lowest column is
  // assigned; then the bound is raised and the next lowest looked at. at_once: the first fitted.
  PREDET_HOST_DEVICE Found<T> nearest_free(int32_t row, bool& at_once) {
    const int32_t known = w_.nearest[row];
    if (known >= 0 && w_.barrier[known] < 0) return {w_.lowest[row], known};
    T* bound = w_.bound + row * w_.bound_stride;
    for (at_once = true;; at_once = false) {
      const Found<T> block = group_.lowest(bound, int32_t(w_.bound_stride));
      const int64_t first = int64_t(block.index) * kBlock;
      const int32_t count = w_.columns - first < kBlock ? int32_t(w_.columns - first) : kBlock;
      const Found<T> free =
          group_.lowest(cost_ + row * stride_ + first, w_.barrier + first, count);
      const bool fits = !(free.value > block.value);
      const int32_t column = int32_t(first) + free.index;
      if (group_.leads()) {
        bound[block.index] = free.value;
        w_.lowest[row] = free.value;
        w_.nearest[row] = column;
      }
      group_.sync();
      if (fits) return {free.value, column};
    }
  }

  PREDET_HOST_DEVICE void gather(int32_t row) {
    const int32_t gathered = w_.gathered[row];
    const T* cost = cost_ + row * stride_;
    T* near = w_.near + row * w_.near_stride;
    for (int32_t a = gathered + group_.lane(); a < slots_; a += group_.lanes()) {
      near[a] = usable(cost[w_.column[a]]);
    }
    group_.sync();
    if (group_.leads()) w_.gathered[row] = slots_;
  }

  // New prices, under which every path of the tree costs nothing beyond them.
  PREDET_HOST_DEVICE void settle() {
    for (int32_t k = group_.lane(); k < reached_; k += group_.lanes()) {
      const int32_t row = w_.tree[k];
      const double rise = end_ - w_.reach[row];
      w_.price[row] += rise;
      const int32_t* own = w_.owned + int64_t(row) * copies_;
      for (int32_t c = 0; c < w_.owns[row]; ++c) w_.discount[own[c]] += rise;
    }
    group_.sync();
  }

  // Gives the free column to the row that found it, that row's former one to the row before, ...
  PREDET_HOST_DEVICE void augment(int32_t root) {
    if (group_.leads()) {
      int32_t slot = slots_;
      int32_t row = end_row_;
      w_.column[slot] = end_column_;
      w_.discount[slot] = 0;
      w_.barrier[end_column_] = infinity<T>();
      while (row != root) {
        const int32_t left = w_.entered[row];
        int32_t* own = w_.owned + int64_t(row) * copies_;
        int32_t place = 0;
        while (own[place] != left) ++place;
        own[place] = slot;
        w_.owner[slot] = row;
        slot = left;
        row = int32_t(w_.from[left]);
      }
      w_.owned[int64_t(root) * copies_ + w_.owns[root]] = slot;
      ++w_.owns[root];
      w_.owner[slot] = root;
    }
    ++slots_;
    group_.sync();
  }

  const Group& group_;
  const Workspace<T>& w_;
  const T* cost_;
  const int64_t stride_;
  const int32_t copies_;
  int32_t slots_ = 0;    // columns assigned so far
  int32_t reached_ = 0;  // rows in the tree
  double end_ = 0;       // length of the path to the free column where the search ends
  int32_t end_row_ = 0, end_column_ = 0;
};

// (targets, queries) -> (queries, copies * targets), in squares that fit the cache.
template <typename Group, typename T>
PREDET_HOST_DEVICE void transpose(const Group& group, const T* cost, int64_t stride,
                                  int32_t targets, int32_t queries, int32_t copies, T* to) {
  constexpr int32_t kSide = 16;
  const int64_t across = (queries + kSide - 1) / kSide;
  const int64_t squares = across * ((targets + kSide - 1) / kSide);
  const int64_t width = int64_t(targets) * copies;
  for (int64_t s = group.lane(); s < squares; s += group.lanes()) {
    const int32_t q0 = int32_t(s % across) * kSide, t0 = int32_t(s / across) * kSide;
    const int32_t q1 = queries - q0 < kSide ? queries : q0 + kSide;
    const int32_t t1 = targets - t0 < kSide ? targets : t0 + kSide;
    for (int32_t q = q0; q < q1; ++q) {
      for (int32_t copy = 0; copy < copies; ++copy) {
        T* row = to + q * width + int64_t(copy) * targets;
        for (int32_t t = t0; t < t1; ++t) row[t] = cost[t * stride + q];
      }
    }
  }
  group.sync();
}

// The queries of a target, which rise from copy to copy (insertion sort: copies are few).
template <typename T>
PREDET_HOST_DEVICE void write_target(const Workspace<T>& w, int64_t target, int64_t targets,
                                     int32_t copies, int64_t* query_of_target) {
  int64_t* to = query_of_target + target;
  for (int32_t k = 0; k < copies; ++k) {
    const int64_t query = w.column[w.owned[target * copies + k]];
    int64_t at = k;
    for (; at > 0 && to[(at - 1) * targets] > query; --at) {
      to[at * targets] = to[(at - 1) * targets];
    }
    to[at * targets] = query;
  }
}

// Solves one problem. `cost` is (targets, queries), with `stride` numbers from row to row.
//
// bounded: the workspace's bounds are filled already; so only with targets * copies <= queries.
//
// query_of_target: (copies, targets), -1 where there are too few queries. Returns how many costs
// are not finite, 0 if `bounded`.
template <typename Group, typename T>
PREDET_HOST_DEVICE int64_t assign(const Group& group, const Workspace<T>& w, const T* cost,
                                  int64_t stride, int32_t targets, int32_t queries,
                                  int32_t copies, bool bounded, int64_t* query_of_target) {
  const int64_t wanted = int64_t(targets) * copies;
  if (wanted <= queries) {
    const int64_t bad = bounded ? 0 : bound_blocks(group, cost, stride, w);
    Solver<Group, T>(group, w, cost, stride, copies).run();
    for (int64_t t = group.lane(); t < targets; t += group.lanes()) {
      write_target(w, t, targets, copies, query_of_target);
    }
    group.sync();
    return bad;
  }
  transpose(group, cost, stride, targets, queries, copies, w.transposed);
  const int64_t bad = bound_blocks(group, w.transposed, wanted, w) / copies;
  for (int64_t j = group.lane(); j < wanted; j += group.lanes()) query_of_target[j] = -1;
  Solver<Group, T>(group, w, w.transposed, wanted, 1).run();
  for (int64_t i = group.lane(); i < w.rows; i += group.lanes()) {
    query_of_target[w.column[w.owned[i]]] = i;
  }
  group.sync();
  return bad;
}

}  // namespace PREDET_ISA
}  // namespace hungarian
}  // namespace predet
