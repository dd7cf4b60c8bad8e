// Sums of squares of fixed blocks (rule N1): eight running sums each, in an order that neither processor nor threads have a
// say in. AVX2 without FMA, so that both versions round alike.
#include "shim.h"

#include <ATen/Parallel.h>

namespace {

#if defined(__x86_64__)
__attribute__((target_clones("avx2", "default")))
#endif
double sum_of_squares(const float *values, size_t len) {
  double sums[8] = {};
  const size_t whole = len / 8 * 8;
  for (size_t i = 0; i < whole; i += 8) {
    for (size_t k = 0; k < 8; ++k) sums[k] += static_cast<double>(values[i + k]) * static_cast<double>(values[i + k]);
  }
  for (size_t k = 0; whole + k < len; ++k)
    sums[k] += static_cast<double>(values[whole + k]) * static_cast<double>(values[whole + k]);
  double sum = 0;
  for (const double part : sums) sum += part;
  return sum;
}

} // namespace

extern "C" void argosy_ext_block_squares(const float *values, size_t len, size_t block, double *out) {
  const auto blocks = static_cast<int64_t>((len + block - 1) / block);
  at::parallel_for(0, blocks, /*grain_size=*/16, [&](int64_t from, int64_t to) {
    for (int64_t b = from; b < to; ++b) {
      const size_t start = static_cast<size_t>(b) * block;
      out[b] = sum_of_squares(values + start, block < len - start ? block : len - start);
    }
  });
}
