#include "march_ffi.h"

namespace tkjax {
namespace {

// Numbers of noise for each sample of a ray, 0 where there is one for the ray; -1 for a wrong shape.
int jitters_of(Floats noise, int64_t rays) {
  const auto dims = noise.dimensions();
  if (shaped(dims, {rays})) return 0;
  const bool each = dims.size() == 2 && dims[0] == rays && dims[1] > 0 && dims[1] < (int64_t{1} << 31);
  return each ? static_cast<int>(dims[1]) : -1;
}

ffi::Error dense(ffi::ThreadPool threads, Floats o, Floats d, ffi::Buffer<ffi::U8> bits, Floats noise, OutFloats t,
                 OutFloats dt, OutInts count, OutFloats near, OutFloats far, int32_t side, int32_t cascades,
                 int32_t vertex, int32_t samples, ffi::Span<const float> box, float step, float t_min, float bound,
                 float dt_gamma, float dt_max) {
  MarchArgs args;
  const Settings s{side, cascades, vertex, samples, box, step, t_min, bound, dt_gamma, dt_max};
  if (const char* wrong = prepare(s, o, d, bits, &args)) return bad(wrong);
  const int jitters = jitters_of(noise, o.dimensions()[0]);
  if (jitters < 0) return bad("march: noise must be [R] or [R,J]");
  const int64_t rays = o.dimensions()[0];
  if (!shaped(t->dimensions(), {rays, samples}) || !shaped(dt->dimensions(), {rays, samples}) ||
      !shaped(count->dimensions(), {rays}) || !shaped(near->dimensions(), {rays}) || !shaped(far->dimensions(), {rays}))
    return bad("march: results must be t, dt [R,S], count, near, far [R]");
  XlaPool pool(threads);
  TKJAX_CALL(march_dense, args, rays, o.typed_data(), d.typed_data(), noise.typed_data(), jitters, t->typed_data(),
             dt->typed_data(), count->typed_data(), near->typed_data(), far->typed_data(), pool);
  return ffi::Error::Success();
}

ffi::Error packed(ffi::ThreadPool threads, Floats o, Floats d, ffi::Buffer<ffi::U8> bits, Floats noise, OutFloats t,
                  OutFloats dt, OutInts ray, OutInts offset, OutInts count, OutFloats near, OutFloats far,
                  OutInts overflow, int32_t side, int32_t cascades, int32_t vertex, int32_t samples,
                  ffi::Span<const float> box, float step, float t_min, float bound, float dt_gamma, float dt_max) {
  MarchArgs args;
  const Settings s{side, cascades, vertex, samples, box, step, t_min, bound, dt_gamma, dt_max};
  if (const char* wrong = prepare(s, o, d, bits, &args)) return bad(wrong);
  const int jitters = jitters_of(noise, o.dimensions()[0]);
  if (jitters < 0) return bad("march: noise must be [R] or [R,J]");
  const int64_t rays = o.dimensions()[0], capacity = static_cast<int64_t>(t->element_count());
  if (!shaped(t->dimensions(), {capacity}) || !shaped(dt->dimensions(), {capacity}) ||
      !shaped(ray->dimensions(), {capacity}) || !shaped(offset->dimensions(), {rays}) ||
      !shaped(count->dimensions(), {rays}) || !shaped(near->dimensions(), {rays}) ||
      !shaped(far->dimensions(), {rays}) || overflow->element_count() != 1 || rays * samples >= int64_t{1} << 31)
    return bad("march_packed: results must be t, dt, ray [M], offset, count, near, far [R], overflow; R S < 2^31");
  XlaPool pool(threads);
  TKJAX_CALL(march_packed, args, rays, capacity, o.typed_data(), d.typed_data(), noise.typed_data(), jitters,
             t->typed_data(), dt->typed_data(), ray->typed_data(), offset->typed_data(), count->typed_data(),
             near->typed_data(), far->typed_data(), overflow->typed_data(), pool);
  return ffi::Error::Success();
}

auto inputs() {
  return ffi::Ffi::Bind().Ctx<ffi::ThreadPool>().Arg<Floats>().Arg<Floats>().Arg<ffi::Buffer<ffi::U8>>().Arg<Floats>();
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
