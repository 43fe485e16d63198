#include "antialias.h"

#include "mesh_ffi.h"

namespace tkjax {
namespace {

// Mesh, picture and scratch memory of a call.
struct Call {
  Mesh mesh;
  Picture picture;
  std::unique_ptr<float[]> at;
  std::unique_ptr<uint8_t[]> bits;

  const char* wrong(Floats clip, Ints face, Floats zw, Ints faces, Ints opposite) {
    if (const char* wrong = mesh_of(clip, faces, face.dimensions(), &mesh)) return wrong;
    if (!shaped(zw.dimensions(), {mesh.height, mesh.width}) || !shaped(opposite.dimensions(), {mesh.count, 3}))
      return "antialias: zw must be [H,W] like face, and opposite [F,3] like faces";
    picture = {face.typed_data(), zw.typed_data(), opposite.typed_data()};
    at = scratch<float>(2 * mesh.vertices);
    bits = scratch<uint8_t>(mesh.count);
    return seen(mesh, face.typed_data());
  }

  SilhouetteScratch room() const { return {at.get(), bits.get()}; }
};

ffi::Error draw(ffi::ThreadPool threads, Floats clip, Ints face, Floats zw, Ints faces, Ints opposite, OutFloats right,
                OutFloats below) {
  Call call;
  if (const char* wrong = call.wrong(clip, face, zw, faces, opposite)) return bad(wrong);
  const Mesh& mesh = call.mesh;
  for (auto out : {right, below})
    if (!shaped(out->dimensions(), {mesh.height, mesh.width})) return bad("antialias: results must be [H,W]");
  XlaPool pool(threads);
  TKJAX_CALL(silhouette_draw, mesh, call.picture, call.room(), right->typed_data(), below->typed_data(), pool);
  return ffi::Error::Success();
}

ffi::Error pull(ffi::ThreadPool threads, Floats clip, Ints face, Floats zw, Ints faces, Ints opposite, Floats g_right,
                Floats g_below, OutFloats out) {
  Call call;
  if (const char* wrong = call.wrong(clip, face, zw, faces, opposite)) return bad(wrong);
  const Mesh& mesh = call.mesh;
  for (auto g : {g_right, g_below})
    if (!shaped(g.dimensions(), {mesh.height, mesh.width})) return bad("antialias: cotangents must be [H,W]");
  if (!shaped(out->dimensions(), {mesh.vertices, 4})) return bad("antialias: the gradient must be [V,4]");
  const int64_t tasks = (mesh.height + RASTER_BAND - 1) / RASTER_BAND;
  const auto pulls = scratch<Pull>(4 * tasks * RASTER_BAND * mesh.width);
  const auto counts = scratch<int64_t>(tasks);
  XlaPool pool(threads);
  TKJAX_CALL(silhouette_pull, mesh, call.picture, call.room(), g_right.typed_data(), g_below.typed_data(), pulls.get(),
             counts.get(), out->typed_data(), pool);
  return ffi::Error::Success();
}

}  // namespace
}  // namespace tkjax

XLA_FFI_DEFINE_HANDLER_SYMBOL(tkjax_silhouette_draw, tkjax::draw,
                              xla::ffi::Ffi::Bind()
                                  .Ctx<xla::ffi::ThreadPool>()
                                  .Arg<tkjax::Floats>()
                                  .Arg<tkjax::Ints>()
                                  .Arg<tkjax::Floats>()
                                  .Arg<tkjax::Ints>()
                                  .Arg<tkjax::Ints>()
                                  .Ret<tkjax::Floats>()
                                  .Ret<tkjax::Floats>());

XLA_FFI_DEFINE_HANDLER_SYMBOL(tkjax_silhouette_pull, tkjax::pull,
                              xla::ffi::Ffi::Bind()
                                  .Ctx<xla::ffi::ThreadPool>()
                                  .Arg<tkjax::Floats>()
                                  .Arg<tkjax::Ints>()
                                  .Arg<tkjax::Floats>()
                                  .Arg<tkjax::Ints>()
                                  .Arg<tkjax::Ints>()
                                  .Arg<tkjax::Floats>()
                                  .Arg<tkjax::Floats>()
                                  .Ret<tkjax::Floats>());
