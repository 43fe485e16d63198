#include "blend_tables.h"

#if defined(__linux__)
#include <sys/mman.h>
#endif

#include <vector>

#include "ffi_common.h"

namespace tkjax {
namespace {

using Floats = ffi::Buffer<ffi::F32>;

// Results as large as all tables are fresh memory in every call, and the pages cost more than the sums. Huge pages cost
// a third of that; where the system has none to give, nothing changes.
void in_huge_pages(float* out, size_t floats) {
#if defined(MADV_HUGEPAGE)
  constexpr uintptr_t PAGE = uintptr_t{1} << 21;
  const uintptr_t first = (reinterpret_cast<uintptr_t>(out) + PAGE - 1) / PAGE * PAGE;
  const uintptr_t end = reinterpret_cast<uintptr_t>(out + floats) / PAGE * PAGE;
  if (end > first) madvise(reinterpret_cast<void*>(first), end - first, MADV_HUGEPAGE);
#else
  (void)out, (void)floats;
#endif
}

// Weights [M,J] (transposed: [J,M]) and arrays [J,T,F] -> [M,T,F].
ffi::Error sums(ffi::ThreadPool threads, Floats weights, Floats arrays, ffi::Result<Floats> out, bool transposed) {
  const auto w = weights.dimensions(), from = arrays.dimensions(), to = out->dimensions();
  if (w.size() != 2 || from.size() != 3 || to.size() != 3 || from[1] != to[1] || from[2] != to[2] ||
      w[transposed] != to[0] || w[!transposed] != from[0])
    return bad("blend_tables: weights must be [M,J], arrays [J,T,F] and the result [M,T,F]");
  std::vector<int64_t> start{0};
  std::vector<int32_t> array;
  std::vector<float> weight;
  for (int64_t m = 0; m < to[0]; ++m) {
    for (int64_t j = 0; j < from[0]; ++j) {
      const float value = weights.typed_data()[transposed ? j * to[0] + m : m * from[0] + j];
      if (value == 0) continue;
      array.push_back(static_cast<int32_t>(j));
      weight.push_back(value);
    }
    start.push_back(static_cast<int64_t>(array.size()));
  }
  in_huge_pages(out->typed_data(), out->element_count());
  XlaPool pool(threads);
  const BlendWeights found{start.data(), array.data(), weight.data()};
  TKJAX_CALL(blend_sums, found, to[0], arrays.typed_data(), to[1] * to[2], out->typed_data(), pool);
  return ffi::Error::Success();
}

// [A,T,F] and [B,T,F] -> [A,B].
ffi::Error products(ffi::ThreadPool threads, Floats left, Floats right, ffi::Result<Floats> out) {
  const auto a = left.dimensions(), b = right.dimensions(), to = out->dimensions();
  if (a.size() != 3 || b.size() != 3 || to.size() != 2 || a[1] != b[1] || a[2] != b[2] || to[0] != a[0] ||
      to[1] != b[0])
    return bad("blend_tables: inner products of [A,T,F] and [B,T,F] are [A,B]");
  const int64_t size = a[1] * a[2];
  std::vector<double> scratch(static_cast<size_t>(blend_tasks(size) * to[0] * to[1]));
  XlaPool pool(threads);
  TKJAX_CALL(blend_products, left.typed_data(), to[0], right.typed_data(), to[1], size, scratch.data(),
             out->typed_data(), pool);
  return ffi::Error::Success();
}

}  // namespace
}  // namespace tkjax

XLA_FFI_DEFINE_HANDLER_SYMBOL(tkjax_blend_sums, tkjax::sums,
                              xla::ffi::Ffi::Bind()
                                  .Ctx<xla::ffi::ThreadPool>()
                                  .Arg<tkjax::Floats>()
                                  .Arg<tkjax::Floats>()
                                  .Ret<tkjax::Floats>()
                                  .Attr<bool>("transposed"));

XLA_FFI_DEFINE_HANDLER_SYMBOL(tkjax_blend_products, tkjax::products,
                              xla::ffi::Ffi::Bind()
                                  .Ctx<xla::ffi::ThreadPool>()
                                  .Arg<tkjax::Floats>()
                                  .Arg<tkjax::Floats>()
                                  .Ret<tkjax::Floats>());
