#include "interpolate.h"

#include "mesh_ffi.h"

namespace tkjax {
namespace {

// The mesh of attributes [V,C], face [H,W], uv [H,W,2] and faces [F,3], or what is wrong.
const char* fits(Floats attributes, Ints face, Floats uv, Ints faces, Mesh* mesh) {
  const auto a = attributes.dimensions(), p = face.dimensions(), f = faces.dimensions();
  if (a.size() != 2 || p.size() != 2 || f.size() != 2 || f[1] != 3 || !shaped(uv.dimensions(), {p[0], p[1], 2}))
    return "interpolate: needs attributes [V,C], face [H,W], uv [H,W,2] and faces [F,3]";
  if (p[0] > 32768 || p[1] > 32768) return "interpolate: a picture has at most 32768 pixels along a side";
  *mesh = {nullptr, a[0], faces.typed_data(), f[0], static_cast<int32_t>(p[0]), static_cast<int32_t>(p[1])};
  return seen(*mesh, face.typed_data());
}

ffi::Error draw(ffi::ThreadPool threads, Floats attributes, Ints face, Floats uv, Ints faces, OutFloats out) {
  Mesh mesh;
  if (const char* wrong = fits(attributes, face, uv, faces, &mesh)) return bad(wrong);
  const int64_t channels = attributes.dimensions()[1];
  if (!shaped(out->dimensions(), {mesh.height, mesh.width, channels}))
    return bad("interpolate: the result must be [H,W,C]");
  XlaPool pool(threads);
  TKJAX_CALL(mix_draw, mesh, attributes.typed_data(), channels, face.typed_data(), uv.typed_data(), out->typed_data(),
             pool);
  return ffi::Error::Success();
}

ffi::Error pull(ffi::ThreadPool threads, Floats attributes, Ints face, Floats uv, Ints faces, Floats g,
                OutFloats to_attributes, OutFloats to_uv) {
  Mesh mesh;
  if (const char* wrong = fits(attributes, face, uv, faces, &mesh)) return bad(wrong);
  const int64_t channels = attributes.dimensions()[1];
  if (!shaped(g.dimensions(), {mesh.height, mesh.width, channels}) ||
      !shaped(to_attributes->dimensions(), {mesh.vertices, channels}) ||
      !shaped(to_uv->dimensions(), {mesh.height, mesh.width, 2}))
    return bad("interpolate: the cotangent must be [H,W,C], its results [V,C] and [H,W,2]");
  const int64_t size = mesh.vertices * channels;
  const int64_t shares = raster_shares(int64_t{mesh.height} * mesh.width, size);
  const auto sums = scratch<float>(shares * size);
  XlaPool pool(threads);
  TKJAX_CALL(mix_pull, mesh, attributes.typed_data(), channels, face.typed_data(), uv.typed_data(), g.typed_data(),
             shares, sums.get(), to_attributes->typed_data(), to_uv->typed_data(), pool);
  return ffi::Error::Success();
}

}  // namespace
}  // namespace tkjax

XLA_FFI_DEFINE_HANDLER_SYMBOL(tkjax_mix_draw, tkjax::draw,
                              xla::ffi::Ffi::Bind()
                                  .Ctx<xla::ffi::ThreadPool>()
                                  .Arg<tkjax::Floats>()
                                  .Arg<tkjax::Ints>()
                                  .Arg<tkjax::Floats>()
                                  .Arg<tkjax::Ints>()
                                  .Ret<tkjax::Floats>());

XLA_FFI_DEFINE_HANDLER_SYMBOL(tkjax_mix_pull, tkjax::pull,
                              xla::ffi::Ffi::Bind()
                                  .Ctx<xla::ffi::ThreadPool>()
                                  .Arg<tkjax::Floats>()
                                  .Arg<tkjax::Ints>()
                                  .Arg<tkjax::Floats>()
                                  .Arg<tkjax::Ints>()
                                  .Arg<tkjax::Floats>()
                                  .Ret<tkjax::Floats>()
                                  .Ret<tkjax::Floats>());
