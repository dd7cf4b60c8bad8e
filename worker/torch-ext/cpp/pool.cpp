// Large CPU tensors from a cache. glibc maps and unmaps blocks of this size, so every temporary of a step would be faulted
// in page by page again (a GELU over 40 MB: 14.6 ms fresh, 3 ms on pages that are there). Also counts bytes, and can be
// told a limit, so that tests meet a real lack of memory.
#include "shim.h"

#include <algorithm>
#include <cstdint>
#include <cstdlib>
#include <map>
#include <mutex>
#include <unordered_map>
#include <vector>

#include <sys/mman.h>

#include <c10/core/Allocator.h>
#include <c10/core/CPUAllocator.h>
#include <c10/core/impl/alloc_cpu.h>

namespace {

constexpr size_t kPooled = size_t{1} << 18; // smaller blocks stay with malloc
constexpr size_t kHuge = size_t{2} << 20;

void free_pooled(void *data);
void free_any(void *data);
void free_small(void *data) { c10::free_cpu(data); }

class Pool final : public c10::Allocator {
public:
  c10::DataPtr allocate(size_t n) override {
    const c10::Device cpu(c10::DeviceType::CPU);
    if (n < kPooled) {
      void *data = c10::alloc_cpu(n);
      return {data, data, &free_small, cpu};
    }
    void *data = take(n);
    return {data, data, &free_pooled, cpu};
  }

  void copy_data(void *dest, const void *src, size_t count) const override { default_copy_data(dest, src, count); }

  // oneDNN asks for scratch memory without saying how it will give it back.
  c10::DeleterFnPtr raw_deleter() const override { return &free_any; }

  // False when the block is none of this pool's.
  bool give_back(void *data) {
    std::lock_guard<std::mutex> lock(mutex_);
    const auto found = live_sizes_.find(data);
    if (found == live_sizes_.end()) return false;
    const size_t size = found->second;
    live_sizes_.erase(found);
    live_ -= size;
    cached_ += size;
    free_[size].push_back(data);
    return true;
  }

  void stats(uint64_t *live, uint64_t *peak, bool reset) {
    std::lock_guard<std::mutex> lock(mutex_);
    *live = live_;
    *peak = peak_;
    if (reset) peak_ = live_;
  }

  void limit(uint64_t bytes) {
    std::lock_guard<std::mutex> lock(mutex_);
    limit_ = bytes;
    if (bytes != 0) drop_cache();
  }

private:
  // Eight sizes per power of two: little is wasted and the next step finds its blocks again.
  static size_t round_up(size_t n) {
    size_t step = kPooled / 8;
    while (step * 16 < n) step *= 2;
    return (n + step - 1) / step * step;
  }

  void *take(size_t n) {
    const size_t size = round_up(n);
    std::lock_guard<std::mutex> lock(mutex_);
    TORCH_CHECK_WITH(OutOfMemoryError, limit_ == 0 || live_ + size <= limit_,
                     "not enough memory: ", n, " bytes asked for, the limit is ", limit_);
    void *data = nullptr;
    // A block at most a quarter too large will do.
    const auto fit = free_.lower_bound(size);
    size_t got = size;
    if (fit != free_.end() && fit->first <= size + size / 4) {
      got = fit->first;
      data = fit->second.back();
      fit->second.pop_back();
      if (fit->second.empty()) free_.erase(fit);
      cached_ -= got;
    } else {
      // What is held beyond the largest need so far by a quarter is given back before more is asked for.
      if (live_ + cached_ + size > most_ + most_ / 4 + (size_t{64} << 20)) drop_cache();
      data = fresh(size);
    }
    live_sizes_[data] = got;
    live_ += got;
    peak_ = std::max(peak_, live_);
    most_ = std::max(most_, live_);
    return data;
  }

  void *fresh(size_t size) {
    void *data = nullptr;
    const size_t align = size >= kHuge ? kHuge : 64;
    if (posix_memalign(&data, align, size) != 0) {
      drop_cache();
      TORCH_CHECK_WITH(OutOfMemoryError, posix_memalign(&data, align, size) == 0,
                       "not enough memory: the system refused ", size, " bytes");
    }
    // Only advice: without huge pages it is slower, not wrong.
    if (size >= kHuge) madvise(data, size, MADV_HUGEPAGE);
    return data;
  }

  void drop_cache() {
    for (auto &[size, blocks] : free_)
      for (void *block : blocks) std::free(block);
    free_.clear();
    cached_ = 0;
  }

  std::mutex mutex_;
  std::map<size_t, std::vector<void *>> free_;
  std::unordered_map<void *, size_t> live_sizes_;
  uint64_t live_ = 0, peak_ = 0, most_ = 0, cached_ = 0, limit_ = 0;
};

// Never destroyed: tensors in static storage may outlive everything else.
Pool &pool() {
  static Pool *const instance = new Pool;
  return *instance;
}

void free_pooled(void *data) { pool().give_back(data); }

void free_any(void *data) {
  if (!pool().give_back(data)) c10::free_cpu(data);
}

} // namespace

extern "C" {

void argosy_ext_pool_install() {
  static std::once_flag once;
  std::call_once(once, [] { c10::SetCPUAllocator(&pool(), /*priority=*/1); });
}

void argosy_ext_pool_stats(uint64_t *live, uint64_t *peak, int reset) { pool().stats(live, peak, reset != 0); }

void argosy_ext_pool_limit(uint64_t bytes) { pool().limit(bytes); }

} // extern "C"
