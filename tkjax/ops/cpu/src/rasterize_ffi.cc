#include "rasterize.h"

#include <memory>

#include "ffi_common.h"
#include "mesh_ffi.h"

namespace tkjax {
namespace {

ffi::Error draw(ffi::ThreadPool threads, Floats clip, Ints faces, OutInts face, OutFloats uv, OutFloats zw) {
  Mesh mesh;
  if (const char* wrong = mesh_of(clip, faces, face->dimensions(), &mesh)) return bad(wrong);
  if (!shaped(uv->dimensions(), {mesh.height, mesh.width, 2}) || !shaped(zw->dimensions(), {mesh.height, mesh.width}))
    return bad("rasterize: results must be face, zw [H,W] and uv [H,W,2]");
  const auto numbers = scratch<float>(2 * mesh.vertices + mesh.width + RASTER_PAD + mesh.height);
  const auto kind = scratch<uint8_t>(mesh.vertices);
  const auto boxes = scratch<uint32_t>(2 * mesh.count);
  const int64_t tasks = (mesh.count + RASTER_FACES - 1) / RASTER_FACES;
  const auto kept = scratch<int32_t>(mesh.count + tasks);
  const RasterScratch room{numbers.get(), kind.get(), numbers.get() + 2 * mesh.vertices, boxes.get(),
                           boxes.get() + mesh.count, kept.get(), kept.get() + mesh.count};
  XlaPool pool(threads);
  TKJAX_CALL(raster_draw, mesh, room, face->typed_data(), uv->typed_data(), zw->typed_data(), pool);
  return ffi::Error::Success();
}

ffi::Error pull(ffi::ThreadPool threads, Floats clip, Ints faces, Ints face, Floats g_uv, OutFloats out) {
  Mesh mesh;
  if (const char* wrong = mesh_of(clip, faces, face.dimensions(), &mesh)) return bad(wrong);
  if (!shaped(g_uv.dimensions(), {mesh.height, mesh.width, 2}) || !shaped(out->dimensions(), {mesh.vertices, 4}))
    return bad("rasterize: the cotangent must be [H,W,2] and its result [V,4]");
  if (const char* wrong = seen(mesh, face.typed_data())) return bad(wrong);
  const int64_t shares = raster_shares(int64_t{mesh.height} * mesh.width, 4 * mesh.vertices);
  const auto sums = scratch<float>(shares * 4 * mesh.vertices);
  XlaPool pool(threads);
  TKJAX_CALL(raster_pull, mesh, face.typed_data(), g_uv.typed_data(), shares, sums.get(), out->typed_data(), pool);
  return ffi::Error::Success();
}

}  // namespace
}  // namespace tkjax

XLA_FFI_DEFINE_HANDLER_SYMBOL(tkjax_raster_draw, tkjax::draw,
                              xla::ffi::Ffi::Bind()
                                  .Ctx<xla::ffi::ThreadPool>()
                                  .Arg<tkjax::Floats>()
                                  .Arg<tkjax::Ints>()
                                  .Ret<tkjax::Ints>()
                                  .Ret<tkjax::Floats>()
                                  .Ret<tkjax::Floats>());

XLA_FFI_DEFINE_HANDLER_SYMBOL(tkjax_raster_pull, tkjax::pull,
                              xla::ffi::Ffi::Bind()
                                  .Ctx<xla::ffi::ThreadPool>()
                                  .Arg<tkjax::Floats>()
                                  .Arg<tkjax::Ints>()
                                  .Arg<tkjax::Ints>()
                                  .Arg<tkjax::Floats>()
                                  .Ret<tkjax::Floats>());
