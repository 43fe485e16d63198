#include "grid_encode.h"

#include <algorithm>
#include <memory>
#include <new>

#include "ffi_common.h"

namespace tkjax {

namespace {

using Floats = ffi::Buffer<ffi::F32>;
using Words = ffi::Span<const int32_t>;

bool shaped(ffi::AnyBuffer::Dimensions dims, std::initializer_list<int64_t> want) {
  return dims.size() == want.size() && std::equal(dims.begin(), dims.end(), want.begin());
}

// The grid, the number of points and of planes; nullptr or what is wrong.
const char* prepare(Words words, Floats points, ffi::AnyBuffer::Dimensions out, ffi::DataType dtype, GridArgs* args) {
  if (const char* wrong = grid_parse(words.begin(), words.size(), args)) return wrong;
  const auto dims = points.dimensions();
  if (dims.size() != 3 || dims[2] != args->dims) return "grid_encode: points must be [N,P,D]";
  if (dims[1] < 1 || dims[1] > 4096) return "grid_encode: there must be 1 to 4096 planes";
  if (!shaped(out, {dims[0], dims[1], args->channels()})) return "grid_encode: features must be [N,P,L*F]";
  if (dtype != ffi::F32 && dtype != ffi::BF16) return "grid_encode: features must be float32 or bfloat16";
  return nullptr;
}

bool fits(Floats tables, const GridArgs& args, int64_t planes) {
  return shaped(tables.dimensions(), {planes, args.entries, args.features});
}

constexpr const char* TABLES = "grid_encode: tables must be [P,T,F] with the grid's entries and features";

ffi::Error forward(ffi::ThreadPool threads, Floats points, Floats tables, ffi::Result<ffi::AnyBuffer> out,
                   Words words) {
  GridArgs args;
  if (const char* wrong = prepare(words, points, out->dimensions(), out->element_type(), &args)) return bad(wrong);
  const int64_t samples = points.dimensions()[0], planes = points.dimensions()[1];
  if (!fits(tables, args, planes)) return bad(TABLES);
  XlaPool pool(threads);
  TKJAX_CALL(grid_encode_forward, args, samples, static_cast<int>(planes), points.typed_data(), tables.typed_data(),
             out->untyped_data(), out->element_type() == ffi::BF16, pool);
  return ffi::Error::Success();
}

// tables may be null where the points' gradient is not asked for; dtables, dpoints where they are not.
ffi::Error backward(ffi::ThreadPool threads, Floats points, const Floats* tables, ffi::AnyBuffer dout, Words words,
                    Floats* dtables, Floats* dpoints) {
  GridArgs args;
  if (const char* wrong = prepare(words, points, dout.dimensions(), dout.element_type(), &args)) return bad(wrong);
  const int64_t samples = points.dimensions()[0], planes = points.dimensions()[1];
  if ((tables && !fits(*tables, args, planes)) || (dtables && !fits(*dtables, args, planes))) return bad(TABLES);
  if (dpoints && !shaped(dpoints->dimensions(), {samples, planes, args.dims}))
    return bad("grid_encode: the gradient to the points must be [N,P,D]");
  XlaPool pool(threads);
  const int count = static_cast<int>(planes);
  const int64_t floats = grid_backward_scratch(args, samples, count, dtables != nullptr);
  std::unique_ptr<float[]> scratch(new (std::nothrow) float[floats]);
  if (!scratch) return bad("grid_encode: no memory for the backward pass");
  TKJAX_CALL(grid_encode_backward, args, samples, count, points.typed_data(), tables ? tables->typed_data() : nullptr,
             dout.untyped_data(), dout.element_type() == ffi::BF16, dtables ? dtables->typed_data() : nullptr,
             dpoints ? dpoints->typed_data() : nullptr, scratch.get(), pool);
  return ffi::Error::Success();
}

ffi::Error tables_gradient(ffi::ThreadPool threads, Floats points, ffi::AnyBuffer dout, ffi::Result<Floats> dtables,
                           Words words) {
  return backward(threads, points, nullptr, dout, words, &*dtables, nullptr);
}

ffi::Error points_gradient(ffi::ThreadPool threads, Floats points, Floats tables, ffi::AnyBuffer dout,
                           ffi::Result<Floats> dpoints, Words words) {
  return backward(threads, points, &tables, dout, words, nullptr, &*dpoints);
}

ffi::Error both_gradients(ffi::ThreadPool threads, Floats points, Floats tables, ffi::AnyBuffer dout,
                          ffi::Result<Floats> dpoints, ffi::Result<Floats> dtables, Words words) {
  return backward(threads, points, &tables, dout, words, &*dtables, &*dpoints);
}

}  // namespace
}  // namespace tkjax

XLA_FFI_DEFINE_HANDLER_SYMBOL(tkjax_grid_encode_forward, tkjax::forward,
                              xla::ffi::Ffi::Bind()
                                  .Ctx<xla::ffi::ThreadPool>()
                                  .Arg<tkjax::Floats>()
                                  .Arg<tkjax::Floats>()
                                  .Ret<xla::ffi::AnyBuffer>()
                                  .Attr<tkjax::Words>("words"));
XLA_FFI_DEFINE_HANDLER_SYMBOL(tkjax_grid_encode_tables_gradient, tkjax::tables_gradient,
                              xla::ffi::Ffi::Bind()
                                  .Ctx<xla::ffi::ThreadPool>()
                                  .Arg<tkjax::Floats>()
                                  .Arg<xla::ffi::AnyBuffer>()
                                  .Ret<tkjax::Floats>()
                                  .Attr<tkjax::Words>("words"));
XLA_FFI_DEFINE_HANDLER_SYMBOL(tkjax_grid_encode_points_gradient, tkjax::points_gradient,
                              xla::ffi::Ffi::Bind()
                                  .Ctx<xla::ffi::ThreadPool>()
                                  .Arg<tkjax::Floats>()
                                  .Arg<tkjax::Floats>()
                                  .Arg<xla::ffi::AnyBuffer>()
                                  .Ret<tkjax::Floats>()
                                  .Attr<tkjax::Words>("words"));
XLA_FFI_DEFINE_HANDLER_SYMBOL(tkjax_grid_encode_both_gradients, tkjax::both_gradients,
                              xla::ffi::Ffi::Bind()
                                  .Ctx<xla::ffi::ThreadPool>()
                                  .Arg<tkjax::Floats>()
                                  .Arg<tkjax::Floats>()
                                  .Arg<xla::ffi::AnyBuffer>()
                                  .Ret<tkjax::Floats>()
                                  .Ret<tkjax::Floats>()
                                  .Attr<tkjax::Words>("words"));
