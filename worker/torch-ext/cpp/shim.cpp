#include "shim.h"

#include <cstdlib>
#include <cstring>
#include <exception>
#include <vector>

#include <ATen/Context.h>
#include <ATen/Version.h>
#include <ATen/core/Tensor.h>
#include <dlfcn.h>

#include <ATen/core/dispatch/Dispatcher.h>
#include <ATen/ops/_fused_adamw.h>
#include <ATen/ops/add.h>
#include <ATen/ops/linear.h>
#include <ATen/ops/native_layer_norm_backward.h>
#include <c10/core/GradMode.h>
#include <torch/csrc/autograd/autograd.h>
#include <torch/headeronly/version.h>

namespace {

char *copy_message(const char *text) {
  const size_t len = std::strlen(text) + 1;
  char *out = static_cast<char *>(std::malloc(len));
  if (out != nullptr) std::memcpy(out, text, len);
  return out;
}

std::vector<at::Tensor> list(at::Tensor *const *tensors, size_t n) {
  std::vector<at::Tensor> out;
  out.reserve(n);
  for (size_t i = 0; i < n; ++i) out.push_back(*tensors[i]);
  return out;
}

// Runs `body` and turns whatever it throws into a message.
template <typename F> char *guarded(F &&body) noexcept {
  try {
    body();
    return nullptr;
  } catch (const c10::Error &e) {
    return copy_message(e.what_without_backtrace());
  } catch (const std::exception &e) {
    return copy_message(e.what());
  } catch (...) {
    return copy_message("unknown C++ exception");
  }
}

// oneDNN's linear layer with the bias, and where asked a residual, joined to the product while it is in cache. It is
// registered for compiled graphs only, hence the dispatcher: `x W^T + b` in one pass, a third faster than at::linear.
at::Tensor fused_linear(const at::Tensor &x, const at::Tensor &w, const std::optional<at::Tensor> &b,
                        const at::Tensor *add) {
  auto &all = c10::Dispatcher::singleton();
  if (add == nullptr) {
    static const auto op =
        all.findSchemaOrThrow("mkldnn::_linear_pointwise", "")
            .typed<at::Tensor(const at::Tensor &, const at::Tensor &, const std::optional<at::Tensor> &,
                              c10::string_view, c10::List<std::optional<at::Scalar>>,
                              std::optional<c10::string_view>)>();
    return op.call(x, w, b, "none", c10::List<std::optional<at::Scalar>>(), "");
  }
  static const auto op = all.findSchemaOrThrow("mkldnn::_linear_pointwise", "binary")
                             .typed<at::Tensor(const at::Tensor &, const at::Tensor &, const at::Tensor &,
                                               const std::optional<at::Tensor> &, c10::string_view)>();
  return op.call(x, *add, w, b, "add");
}

} // namespace

extern "C" {

void argosy_ext_free(char *message) { std::free(message); }

char *argosy_ext_build(int what, char **out) {
  return guarded([&] {
    // Not at::show_config: it asks about CUDA, and libtorch remembers that answer even if CUDA is loaded later.
    const std::string text = what == 0   ? TORCH_VERSION
                             : what == 1 ? at::get_cpu_capability()
                                         : at::get_cxx_flags() + "; " + at::get_mkl_version() + "; " +
                                               at::get_mkldnn_version() + "; " + at::get_openmp_version();
    *out = copy_message(text.c_str());
  });
}

char *argosy_ext_backward(at::Tensor *const *outputs, at::Tensor *const *upstream, size_t n) {
  return guarded([&] { torch::autograd::backward(list(outputs, n), list(upstream, n)); });
}

char *argosy_ext_set_grad(at::Tensor *leaf, at::Tensor *grad) {
  return guarded([&] {
    TORCH_CHECK(leaf->is_leaf() && leaf->requires_grad(), "only a leaf that requires a gradient can be given one");
    TORCH_CHECK(leaf->sizes() == grad->sizes() && leaf->dtype() == grad->dtype(), "gradient does not fit its leaf");
    leaf->mutable_grad() = *grad;
  });
}

char *argosy_ext_fused_adamw(at::Tensor *const *params, at::Tensor *const *grads, at::Tensor *const *exp_avg,
                             at::Tensor *const *exp_avg_sq, at::Tensor *const *steps, size_t n, double lr,
                             double beta1, double beta2, double weight_decay, double eps) {
  return guarded([&] {
    // Leaves that require a gradient may be written in place only without a graph.
    c10::NoGradGuard no_grad;
    const auto p = list(params, n), g = list(grads, n), m = list(exp_avg, n), v = list(exp_avg_sq, n);
    const auto s = list(steps, n);
    at::_fused_adamw_(p, g, m, v, /*max_exp_avg_sqs=*/{}, s, lr, beta1, beta2, weight_decay, eps, /*amsgrad=*/false,
                      /*maximize=*/false);
  });
}

char *argosy_ext_linear(at::Tensor *x, at::Tensor *weight, at::Tensor *bias, at::Tensor *add, at::Tensor **out) {
  return guarded([&] {
    c10::NoGradGuard no_grad;
    const std::optional<at::Tensor> b = bias == nullptr ? std::nullopt : std::optional<at::Tensor>(*bias);
    const bool fused = x->device().is_cpu() && x->numel() > 0;
    at::Tensor y;
    if (fused) {
      const bool joins = add != nullptr && add->scalar_type() == x->scalar_type();
      y = fused_linear(*x, *weight, b, joins ? add : nullptr);
      if (add != nullptr && !joins) y = at::add(y, *add);
    } else {
      y = at::linear(*x, *weight, b);
      if (add != nullptr) y = at::add(y, *add);
    }
    *out = new at::Tensor(y);
  });
}

char *argosy_ext_layer_norm_backward(at::Tensor *dy, at::Tensor *x, at::Tensor *mean, at::Tensor *rstd,
                                     at::Tensor *weight, at::Tensor *bias, at::Tensor **out) {
  return guarded([&] {
    c10::NoGradGuard no_grad;
    auto [dx, dw, db] = at::native_layer_norm_backward(*dy, *x, weight->sizes(), *mean, *rstd, *weight, *bias,
                                                       {true, true, true});
    out[0] = new at::Tensor(dx);
    out[1] = new at::Tensor(dw);
    out[2] = new at::Tensor(db);
  });
}

char *argosy_ext_load_cuda(const char *path) {
  // Global symbols: libtorch finds its CUDA hooks in a registry that the library's constructors fill.
  if (dlopen(path, RTLD_NOW | RTLD_GLOBAL) != nullptr) return nullptr;
  const char *why = dlerror();
  return copy_message(why != nullptr ? why : "dlopen failed and did not say why");
}

void argosy_ext_exact_cuda(int deterministic) {
  auto &context = at::globalContext();
  // Convolutions round their inputs to TF32 unless told otherwise; matrix products do not.
  context.setAllowTF32CuDNN(false);
  context.setAllowTF32CuBLAS(false);
  if (deterministic == 0) return;
  // Read when cuBLAS is first used.
  setenv("CUBLAS_WORKSPACE_CONFIG", ":4096:8", 0);
  context.setDeterministicAlgorithms(true, /*warn_only=*/false);
  context.setDeterministicFillUninitializedMemory(false);
  context.setDeterministicCuDNN(true);
  context.setBenchmarkCuDNN(false);
}

// The driver's own interface, so that nothing of libtorch is asked and no context is made.
char *argosy_ext_gpu(int index, char **name, int *major, int *minor, int *driver) {
  return guarded([&] {
    void *library = dlopen("libcuda.so.1", RTLD_NOW | RTLD_LOCAL);
    TORCH_CHECK(library != nullptr, "no NVIDIA driver is here");
    const auto call = [&](const char *symbol, auto *type, auto... args) {
      auto *function = reinterpret_cast<decltype(type)>(dlsym(library, symbol));
      TORCH_CHECK(function != nullptr && function(args...) == 0, symbol, " failed");
    };
    using Init = int(unsigned);
    using Get = int(int *, int);
    using Name = int(char *, int, int);
    using Attribute = int(int *, int, int);
    using Version = int(int *);
    constexpr int kMajor = 75, kMinor = 76; // CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_*
    int device = 0;
    char text[256] = {};
    call("cuInit", static_cast<Init *>(nullptr), 0u);
    call("cuDeviceGet", static_cast<Get *>(nullptr), &device, index);
    call("cuDeviceGetName", static_cast<Name *>(nullptr), text, static_cast<int>(sizeof(text) - 1), device);
    call("cuDeviceGetAttribute", static_cast<Attribute *>(nullptr), major, kMajor, device);
    call("cuDeviceGetAttribute", static_cast<Attribute *>(nullptr), minor, kMinor, device);
    call("cuDriverGetVersion", static_cast<Version *>(nullptr), driver);
    *name = copy_message(text);
  });
}

char *argosy_ext_f32_data(at::Tensor *tensor, float **data, size_t *len) {
  return guarded([&] {
    TORCH_CHECK(tensor->device().is_cpu() && tensor->scalar_type() == at::kFloat && tensor->is_contiguous(),
                "a flat buffer is a contiguous f32 tensor in main memory");
    *data = tensor->mutable_data_ptr<float>();
    *len = static_cast<size_t>(tensor->numel());
  });
}

} // extern "C"
