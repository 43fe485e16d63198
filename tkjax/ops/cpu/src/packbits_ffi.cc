#include "packbits.h"

#include "ffi_common.h"

namespace tkjax {
namespace {

using Floats = ffi::Buffer<ffi::F32>;

ffi::Error pack(ffi::ThreadPool threads, Floats density, Floats threshold, ffi::Result<ffi::Buffer<ffi::U8>> out) {
  const auto cells = static_cast<int64_t>(density.element_count());
  if (density.dimensions().size() != 1 || cells % 8 || out->element_count() * 8 != density.element_count())
    return bad("packbits: density must be [cells], a multiple of 8, and the result [cells / 8]");
  if (threshold.element_count() != 1) return bad("packbits: the threshold is one number");
  XlaPool pool(threads);
  TKJAX_CALL(packbits, density.typed_data(), cells, *threshold.typed_data(), out->typed_data(), pool);
  return ffi::Error::Success();
}

ffi::Error dilate(ffi::ThreadPool threads, Floats density, ffi::Result<Floats> out, int32_t side) {
  const bool cube = side >= 1 && side <= 1024 && !(side & (side - 1)) && density.dimensions().size() == 1 &&
                    static_cast<int64_t>(density.element_count()) == int64_t{side} * side * side;
  if (!cube || out->element_count() != density.element_count())
    return bad("dilate_morton: density must be [side^3], side a power of two up to 1024");
  XlaPool pool(threads);
  TKJAX_CALL(dilate_morton, density.typed_data(), side, out->typed_data(), pool);
  return ffi::Error::Success();
}

}  // namespace
}  // namespace tkjax

XLA_FFI_DEFINE_HANDLER_SYMBOL(tkjax_packbits, tkjax::pack,
                              xla::ffi::Ffi::Bind()
                                  .Ctx<xla::ffi::ThreadPool>()
                                  .Arg<tkjax::Floats>()
                                  .Arg<tkjax::Floats>()
                                  .Ret<xla::ffi::Buffer<xla::ffi::U8>>());

XLA_FFI_DEFINE_HANDLER_SYMBOL(tkjax_dilate_morton, tkjax::dilate,
                              xla::ffi::Ffi::Bind()
                                  .Ctx<xla::ffi::ThreadPool>()
                                  .Arg<tkjax::Floats>()
                                  .Ret<tkjax::Floats>()
                                  .Attr<int32_t>("side"));
