// What libtorch computed when, for `argosy profile`: one span an operator, with the work its shapes imply.
#include "record.h"

#include <algorithm>
#include <chrono>
#include <cstring>
#include <initializer_list>
#include <memory>
#include <mutex>
#include <vector>

#include <ATen/core/Tensor.h>
#include <ATen/record_function.h>

namespace {

constexpr size_t kSpansMax = size_t(4) << 20;
std::mutex mutex;
std::vector<argosy_ext_span> spans;
at::CallbackHandle handle = 0;

struct Started : at::ObserverContext {
  int64_t at = 0;
  double flops = 0, bytes = 0;
  // Of every element that comes out, for a convolution.
  double flops_each = 0;
  // Whose they are is asked, they are never looked into.
  std::vector<const void *> inputs;
};

int64_t now() {
  return std::chrono::duration_cast<std::chrono::nanoseconds>(std::chrono::steady_clock::now().time_since_epoch()).count();
}

double numel(const at::Tensor &t) { return static_cast<double>(t.numel()); }

// Multiplications and additions that one element of a convolution's output takes; its weight is [out, in / groups, ...].
double kernel_flops(const at::Tensor &weight) {
  const bool fits = weight.defined() && weight.dim() > 2 && weight.size(0) > 0;
  return fits ? 2.0 * numel(weight) / static_cast<double>(weight.size(0)) : 0.0;
}

// Multiplications and additions of the products among the operators; everything else counts as memory traffic.
double flops_of(const char *name, c10::ArrayRef<const c10::IValue> in) {
  auto tensor = [&](size_t i) { return i < in.size() && in[i].isTensor() ? in[i].toTensor() : at::Tensor(); };
  auto product = [&](size_t i) {
    const at::Tensor a = tensor(i), b = tensor(i + 1);
    if (!a.defined() || !b.defined() || a.dim() < 2 || b.dim() < 2) return 0.0;
    return 2.0 * numel(a) * static_cast<double>(b.size(-1));
  };
  if (!std::strcmp(name, "aten::mm") || !std::strcmp(name, "aten::bmm")) return product(0);
  if (!std::strcmp(name, "aten::addmm") || !std::strcmp(name, "aten::addmm_") || !std::strcmp(name, "aten::baddbmm"))
    return product(1);
  // A linear layer with what follows it; its weight is [out, in]. One form has the other summand before the weight.
  if (!std::strcmp(name, "mkldnn::_linear_pointwise")) {
    const at::Tensor x = tensor(0), third = tensor(2);
    const at::Tensor w = third.defined() && third.dim() == 2 ? third : tensor(1);
    return x.defined() && w.defined() && w.dim() == 2 ? 2.0 * numel(x) * static_cast<double>(w.size(0)) : 0.0;
  }
  // Two products of queries and keys forward, five backward; a causal mask is not taken off.
  if (!std::strcmp(name, "aten::_scaled_dot_product_flash_attention_for_cpu")) {
    const at::Tensor q = tensor(0), k = tensor(1);
    return q.defined() && k.defined() && k.dim() > 2 ? 4.0 * numel(q) * static_cast<double>(k.size(-2)) : 0.0;
  }
  if (!std::strcmp(name, "aten::_scaled_dot_product_flash_attention_for_cpu_backward")) {
    const at::Tensor q = tensor(1), k = tensor(2);
    return q.defined() && k.defined() && k.dim() > 2 ? 10.0 * numel(q) * static_cast<double>(k.size(-2)) : 0.0;
  }
  // One product with the kernel for the inputs' gradient, one for the kernel's, as far as they are wanted. Arguments: gradient,
  // input, weight, sizes of the bias, stride, padding, dilation, transposed, output padding, groups, what is wanted.
  if (!std::strcmp(name, "aten::convolution_backward")) {
    const at::Tensor dy = tensor(0);
    if (!dy.defined() || in.size() < 11 || !in[10].isBoolList()) return 0.0;
    const auto wanted = in[10].toBoolList();
    double products = 0;
    for (size_t i = 0; i < 2 && i < wanted.size(); ++i) products += wanted[i] ? 1 : 0;
    return products * numel(dy) * kernel_flops(tensor(2));
  }
  return 0.0;
}

// Bytes that a tensor's values take in memory: what is only repeated (a stride of 0) counts once.
double bytes_of(const at::Tensor &t) {
  double values = 1;
  for (int64_t d = 0; d < t.dim(); ++d) {
    if (t.stride(d) != 0 || t.size(d) == 0) values *= static_cast<double>(t.size(d));
  }
  return values * static_cast<double>(t.element_size());
}

template <typename F> void each_tensor(c10::ArrayRef<const c10::IValue> values, F &&body) {
  for (const auto &value : values) {
    if (value.isTensor() && value.toTensor().defined()) {
      body(value.toTensor());
    } else if (value.isTensorList()) {
      for (const at::Tensor &t : value.toTensorList()) {
        if (t.defined()) body(t);
      }
    }
  }
}

bool is(const char *name, std::initializer_list<const char *> names) {
  for (const char *one : names) {
    if (!std::strcmp(name, one)) return true;
  }
  return false;
}

// Bytes an operator reads; of tables of which it reads some rows, as many as rows come out, which is what `end` adds.
double bytes_read(const char *name, c10::ArrayRef<const c10::IValue> in) {
  double bytes = 0;
  each_tensor(in, [&](const at::Tensor &t) { bytes += bytes_of(t); });
  const bool has_self = !in.empty() && in[0].isTensor() && in[0].toTensor().defined();
  if (!has_self) return bytes;
  const double self = bytes_of(in[0].toTensor());
  if (is(name, {"aten::copy_", "aten::fill_", "aten::zero_"})) return bytes - self; // written only
  if (is(name, {"aten::index_select", "aten::embedding"})) return bytes - self;
  if (is(name, {"aten::index_add_"}) && in.size() > 3 && in[3].isTensor()) {
    return bytes - self + 2 * bytes_of(in[3].toTensor()); // the rows that are added to, read and written
  }
  return bytes;
}

// Inputs may be looked at only here: they lie on the caller's stack, and later the operator has moved them away.
std::unique_ptr<at::ObserverContext> begin(const at::RecordFunction &fn) {
  auto started = std::make_unique<Started>();
  try {
    started->flops = flops_of(fn.name(), fn.inputs());
    // Whatever library does it, this operator is round it, and it alone counts.
    if (is(fn.name(), {"aten::convolution"}) && fn.inputs().size() > 1 && fn.inputs()[1].isTensor())
      started->flops_each = kernel_flops(fn.inputs()[1].toTensor());
    started->bytes = bytes_read(fn.name(), fn.inputs());
    each_tensor(fn.inputs(), [&](const at::Tensor &t) { started->inputs.push_back(t.unsafeGetTensorImpl()); });
  } catch (...) {
    // Inputs of an unexpected kind: the span's time still counts.
  }
  started->at = now();
  return started;
}

double bytes_written(const at::RecordFunction &fn, const Started &started) {
  const char *name = fn.name();
  const bool in_place = name[0] != '\0' && name[std::strlen(name) - 1] == '_';
  double bytes = 0;
  each_tensor(c10::ArrayRef<const c10::IValue>(fn.outputs().data(), fn.outputs().size()), [&](const at::Tensor &t) {
    const bool was_input = std::find(started.inputs.begin(), started.inputs.end(), t.unsafeGetTensorImpl()) != started.inputs.end();
    // Given as the place for the result, it was counted with the inputs already.
    if (!was_input || in_place) bytes += bytes_of(t);
  });
  if (is(name, {"aten::index_select", "aten::embedding"})) return 2 * bytes; // rows of the table, and the result
  if (is(name, {"aten::index_add_"})) return 0;
  return bytes;
}

void end(const at::RecordFunction &fn, at::ObserverContext *context) {
  const int64_t at = now();
  if (context == nullptr) return;
  argosy_ext_span span{};
  std::strncpy(span.name, fn.name(), sizeof(span.name) - 1);
  const auto *started = static_cast<Started *>(context);
  span.start_ns = started->at;
  span.end_ns = at;
  span.flops = started->flops;
  span.bytes = started->bytes;
  span.thread = fn.threadId();
  span.backward = fn.scope() == at::RecordScope::BACKWARD_FUNCTION;
  try {
    span.bytes += bytes_written(fn, *started);
    if (started->flops_each > 0) {
      each_tensor(c10::ArrayRef<const c10::IValue>(fn.outputs().data(), fn.outputs().size()),
                  [&](const at::Tensor &t) { span.flops += started->flops_each * numel(t); });
    }
  } catch (...) {
    // Outputs of an unexpected kind: the span's time still counts.
  }
  const std::lock_guard<std::mutex> guard(mutex);
  if (spans.size() < kSpansMax) spans.push_back(span);
}

} // namespace

extern "C" {

int64_t argosy_ext_now_ns() { return now(); }

void argosy_ext_record_start() {
  const std::lock_guard<std::mutex> guard(mutex);
  spans.clear();
  if (handle == 0) {
    auto callback = at::RecordFunctionCallback(begin, end).needsInputs(true).needsOutputs(true);
    handle = at::addGlobalCallback(callback.scopes({at::RecordScope::FUNCTION, at::RecordScope::BACKWARD_FUNCTION}));
  }
}

void argosy_ext_record_mark(const char *name) {
  if (handle == 0) return;
  argosy_ext_span span{};
  std::strncpy(span.name, name, sizeof(span.name) - 1);
  span.start_ns = span.end_ns = now();
  span.thread = at::RecordFunction::currentThreadId();
  const std::lock_guard<std::mutex> guard(mutex);
  if (spans.size() < kSpansMax) spans.push_back(span);
}

void argosy_ext_record_stop() {
  if (handle != 0) at::removeCallback(handle);
  handle = 0;
}

size_t argosy_ext_record_read(argosy_ext_span *out, size_t most) {
  const std::lock_guard<std::mutex> guard(mutex);
  const size_t n = spans.size() < most ? spans.size() : most;
  if (out != nullptr && n > 0) std::memcpy(out, spans.data(), n * sizeof(argosy_ext_span));
  return out == nullptr ? spans.size() : n;
}

} // extern "C"
