// Working memory on cache-line borders.
#pragma once

#include <cstddef>
#include <cstdint>
#include <new>

namespace predet {

class Buffer {
 public:
  explicit Buffer(int64_t bytes)
      : data_(static_cast<char*>(::operator new(static_cast<std::size_t>(bytes), kAlignment))) {}
  ~Buffer() { ::operator delete(data_, kAlignment); }
  Buffer(const Buffer&) = delete;
  Buffer& operator=(const Buffer&) = delete;

  char* at(int64_t byte) { return data_ + byte; }

  static int64_t round_up(int64_t bytes) { return (bytes + 63) / 64 * 64; }

 private:
  static constexpr std::align_val_t kAlignment{64};
  char* data_;
};

}  // namespace predet
