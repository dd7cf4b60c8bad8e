// The border between Rust and what tch does not expose. Every function returns NULL, or a message made by malloc that
// the caller gives back to argosy_ext_free. No exception leaves this file.
#pragma once
#include <cstddef>
#include <cstdint>

namespace at {
class Tensor;
}

extern "C" {
void argosy_ext_free(char *message);
// 0: version, 1: processor capability in use, 2: flags and libraries; `out` is made by malloc.
char *argosy_ext_build(int what, char **out);
char *argosy_ext_backward(at::Tensor *const *outputs, at::Tensor *const *upstream, size_t n);
char *argosy_ext_set_grad(at::Tensor *leaf, at::Tensor *grad);
char *argosy_ext_fused_adamw(at::Tensor *const *params, at::Tensor *const *grads, at::Tensor *const *exp_avg,
                             at::Tensor *const *exp_avg_sq, at::Tensor *const *steps, size_t n, double lr,
                             double beta1, double beta2, double weight_decay, double eps);
char *argosy_ext_linear(at::Tensor *x, at::Tensor *weight, at::Tensor *bias, at::Tensor *add, at::Tensor **out);
char *argosy_ext_layer_norm_backward(at::Tensor *dy, at::Tensor *x, at::Tensor *mean, at::Tensor *rstd,
                                     at::Tensor *weight, at::Tensor *bias, at::Tensor **out);
// Sum of squares of every `block` values; `out` has room for one sum a block, the last of which may be short.
void argosy_ext_block_squares(const float *values, size_t len, size_t block, double *out);
void argosy_ext_pool_install();
void argosy_ext_pool_stats(uint64_t *live, uint64_t *peak, int reset);
void argosy_ext_pool_limit(uint64_t bytes);
char *argosy_ext_load_cuda(const char *path);
// fp32 stays fp32 on CUDA; with `deterministic` equal inputs give equal bits there.
void argosy_ext_exact_cuda(int deterministic);
// Name (made by malloc), compute capability and driver version (1000 major + 10 minor) of a GPU.
char *argosy_ext_gpu(int index, char **name, int *major, int *minor, int *driver);
char *argosy_ext_f32_data(at::Tensor *tensor, float **data, size_t *len);
}
