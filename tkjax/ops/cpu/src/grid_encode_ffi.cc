#include "grid_encode.h"

#include <algorithm>
#include <cmath>
#include <cstring>

#include "ffi_common.h"

namespace tkjax {

const char* grid_parse(const int32_t* words, size_t count, GridArgs* out) {
  constexpr size_t HEAD = 4, PER_LEVEL = 8;
  if (count < HEAD) return "grid: the description is too short";
  GridArgs args{};
  args.dims = words[0], args.levels = words[1], args.features = words[2], args.smoothstep = words[3];
  if (args.dims != 2 && args.dims != 3) return "grid: dims must be 2 or 3";
  if (args.levels < 1 || args.levels > GRID_MAX_LEVELS) return "grid: levels must be 1 to 32";
  if (args.features != 1 && args.features != 2 && args.features != 4 && args.features != 8)
    return "grid: features must be 1, 2, 4 or 8";
  if (count != HEAD + PER_LEVEL * args.levels) return "grid: the description has the wrong length";
  int64_t total = 0;
  for (int l = 0; l < args.levels; ++l) {
    const int32_t* w = words + HEAD + PER_LEVEL * l;
    GridLevel& level = args.level[l];
    std::memcpy(&level.scale, w, 4);
    const int64_t resolution = w[1], entries = w[2];
    if (!(level.scale >= 0) || resolution < 1 || level.scale > resolution || resolution >= (1 << 24))
      return "grid: a level's scale must be 0 to its resolution, and that below 2^24";
    if (entries < 1 || w[3] != total || total + entries > INT32_MAX / args.features)
      return "grid: levels must follow each other and hold less than 2^31 numbers";
    level.hashed = w[4] != 0, level.entries = entries, level.offset = total;
    int64_t highest = 0;  // index
    for (int d = 0; d < args.dims; ++d) {
      if (w[5 + d] < 0) return "grid: strides must not be negative";
      level.stride[d] = w[5 + d];
      highest += w[5 + d] * resolution;
    }
    const bool wraps = level.hashed || highest >= entries;
    if (wraps && (entries & (entries - 1))) return "grid: the entries of a level that wraps must be a power of two";
    if (!wraps && level.stride[0] != 1) return "grid: the first axis of a dense level must have stride 1";
    level.mask = wraps ? static_cast<uint32_t>(entries - 1) : ~0u;
    total += entries;
  }
  args.entries = static_cast<uint32_t>(total);
  *out = args;
  return nullptr;
}

int64_t grid_backward_scratch(const GridArgs& args, int64_t samples, int planes, bool table_gradient) {
  int64_t floats = grid_slab(args, samples, planes) * planes * (args.dims + args.channels());
  for (int l = 0; table_gradient && l < args.levels; ++l)
    floats += (grid_parts(args, l, samples, planes) - 1) * static_cast<int64_t>(args.level[l].entries) *
              args.features * planes;
  return floats;
}

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
  std::unique_ptr<float[]> scratch(new float[grid_backward_scratch(args, samples, count, dtables != nullptr)]);
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
