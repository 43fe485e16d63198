#include "march.h"

#include "ffi_common.h"

namespace tkjax {
namespace {

using Floats = ffi::Buffer<ffi::F32>;
using OutFloats = ffi::Result<Floats>;
using OutInts = ffi::Result<ffi::Buffer<ffi::S32>>;

bool shaped(ffi::AnyBuffer::Dimensions dims, std::initializer_list<int64_t> want) {
  return dims.size() == want.size() && std::equal(dims.begin(), dims.end(), want.begin());
}

struct Settings {
  int32_t side, cascades, vertex, samples;
  ffi::Span<const float> box;
  float dt, t_min, bound, dt_gamma, dt_max;
};

// Checks what would make the kernel read or write out of bounds, or not end.
const char* prepare(const Settings& s, Floats o, Floats d, ffi::Buffer<ffi::U8> bits, Floats noise, MarchArgs* out) {
  const auto dims = o.dimensions();
  if (dims.size() != 2 || dims[1] != 3 || !shaped(d.dimensions(), {dims[0], 3}))
    return "march: origins and directions must be [R,3]";
  if (!shaped(noise.dimensions(), {dims[0]})) return "march: noise must be [R]";
  if (s.side < 1 || s.side > 1024 || s.cascades < 1 || s.cascades > MARCH_MAX_CASCADES || s.samples < 1)
    return "march: side must be 1 to 1024, cascades 1 to 16, samples at least 1";
  if (!s.vertex && (s.side & (s.side - 1))) return "march: side must be a power of two";
  if (s.vertex && s.cascades > 1) return "march: vertices have one cascade";
  if (s.box.size() != 6) return "march: the box has six numbers";
  if (!(s.dt > 0 && s.dt_max >= s.dt && s.bound > 0 && s.dt_gamma >= 0 && s.t_min >= 0))
    return "march: needs 0 < dt <= dt_max, bound > 0, dt_gamma >= 0, t_min >= 0";
  const int64_t side = s.side, edge = side + 1;
  const int64_t cells = s.vertex ? edge * edge * edge : s.cascades * side * side * side;
  if (cells > int64_t{1} << 31) return "march: more than 2^31 cells";
  const int64_t bytes = static_cast<int64_t>(bits.element_count());
  if (bytes % 4 || bytes * 8 < cells) return "march: occupancy must be whole 32-bit words that hold all cells";
  *out = MarchArgs{};
  out->bits = bits.typed_data();
  out->bytes = s.vertex ? bytes : (cells + 7) / 8;
  out->side = s.side, out->cascades = s.cascades, out->vertex = s.vertex, out->samples = s.samples;
  std::copy(s.box.begin(), s.box.end(), out->box);
  out->dt = s.dt, out->t_min = s.t_min, out->bound = s.bound, out->dt_gamma = s.dt_gamma, out->dt_max = s.dt_max;
  TKJAX_CALL(march_prepare, out);
  return nullptr;
}

ffi::Error dense(ffi::ThreadPool threads, Floats o, Floats d, ffi::Buffer<ffi::U8> bits, Floats noise, OutFloats t,
                 OutFloats dt, OutInts count, OutFloats near, OutFloats far, int32_t side, int32_t cascades,
                 int32_t vertex, int32_t samples, ffi::Span<const float> box, float step, float t_min, float bound,
                 float dt_gamma, float dt_max) {
  MarchArgs args;
  const Settings s{side, cascades, vertex, samples, box, step, t_min, bound, dt_gamma, dt_max};
  if (const char* wrong = prepare(s, o, d, bits, noise, &args)) return bad(wrong);
  const int64_t rays = o.dimensions()[0];
  if (!shaped(t->dimensions(), {rays, samples}) || !shaped(dt->dimensions(), {rays, samples}) ||
      !shaped(count->dimensions(), {rays}) || !shaped(near->dimensions(), {rays}) || !shaped(far->dimensions(), {rays}))
    return bad("march: results must be t, dt [R,S], count, near, far [R]");
  XlaPool pool(threads);
  TKJAX_CALL(march_dense, args, rays, o.typed_data(), d.typed_data(), noise.typed_data(), t->typed_data(),
             dt->typed_data(), count->typed_data(), near->typed_data(), far->typed_data(), pool);
  return ffi::Error::Success();
}

ffi::Error packed(ffi::ThreadPool threads, Floats o, Floats d, ffi::Buffer<ffi::U8> bits, Floats noise, OutFloats t,
                  OutFloats dt, OutInts ray, OutInts offset, OutInts count, OutFloats near, OutFloats far,
                  OutInts overflow, int32_t side, int32_t cascades, int32_t vertex, int32_t samples,
                  ffi::Span<const float> box, float step, float t_min, float bound, float dt_gamma, float dt_max) {
  MarchArgs args;
  const Settings s{side, cascades, vertex, samples, box, step, t_min, bound, dt_gamma, dt_max};
  if (const char* wrong = prepare(s, o, d, bits, noise, &args)) return bad(wrong);
  const int64_t rays = o.dimensions()[0], capacity = static_cast<int64_t>(t->element_count());
  if (!shaped(t->dimensions(), {capacity}) || !shaped(dt->dimensions(), {capacity}) ||
      !shaped(ray->dimensions(), {capacity}) || !shaped(offset->dimensions(), {rays}) ||
      !shaped(count->dimensions(), {rays}) || !shaped(near->dimensions(), {rays}) ||
      !shaped(far->dimensions(), {rays}) || overflow->element_count() != 1 || rays * samples >= int64_t{1} << 31)
    return bad("march_packed: results must be t, dt, ray [M], offset, count, near, far [R], overflow; R S < 2^31");
  XlaPool pool(threads);
  TKJAX_CALL(march_packed, args, rays, capacity, o.typed_data(), d.typed_data(), noise.typed_data(), t->typed_data(),
             dt->typed_data(), ray->typed_data(), offset->typed_data(), count->typed_data(), near->typed_data(),
             far->typed_data(), overflow->typed_data(), pool);
  return ffi::Error::Success();
}

auto inputs() {
  return ffi::Ffi::Bind().Ctx<ffi::ThreadPool>().Arg<Floats>().Arg<Floats>().Arg<ffi::Buffer<ffi::U8>>().Arg<Floats>();
}

template <typename Binding>
auto settings(Binding&& binding) {
  return std::move(binding)
      .template Attr<int32_t>("side")
      .template Attr<int32_t>("cascades")
      .template Attr<int32_t>("vertex")
      .template Attr<int32_t>("samples")
      .template Attr<ffi::Span<const float>>("box")
      .template Attr<float>("dt")
      .template Attr<float>("t_min")
      .template Attr<float>("bound")
      .template Attr<float>("dt_gamma")
      .template Attr<float>("dt_max");
}

using Ints = ffi::Buffer<ffi::S32>;

}  // namespace
}  // namespace tkjax

XLA_FFI_DEFINE_HANDLER_SYMBOL(tkjax_march_dense, tkjax::dense,
                              tkjax::settings(tkjax::inputs()
                                                  .Ret<tkjax::Floats>()
                                                  .Ret<tkjax::Floats>()
                                                  .Ret<tkjax::Ints>()
                                                  .Ret<tkjax::Floats>()
                                                  .Ret<tkjax::Floats>()));

XLA_FFI_DEFINE_HANDLER_SYMBOL(tkjax_march_packed, tkjax::packed,
                              tkjax::settings(tkjax::inputs()
                                                  .Ret<tkjax::Floats>()
                                                  .Ret<tkjax::Floats>()
                                                  .Ret<tkjax::Ints>()
                                                  .Ret<tkjax::Ints>()
                                                  .Ret<tkjax::Ints>()
                                                  .Ret<tkjax::Floats>()
                                                  .Ret<tkjax::Floats>()
                                                  .Ret<tkjax::Ints>()));
