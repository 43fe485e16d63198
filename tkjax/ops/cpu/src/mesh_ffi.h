// What handlers of meshes share: shapes, scratch memory, and the check that what they are given fits together.
#pragma once

#include <initializer_list>
#include <memory>

#include "ffi_common.h"
#include "rasterize.h"

namespace tkjax {

using Floats = ffi::Buffer<ffi::F32>;
using Ints = ffi::Buffer<ffi::S32>;
using OutFloats = ffi::Result<Floats>;
using OutInts = ffi::Result<Ints>;

inline bool shaped(ffi::Span<const int64_t> dims, std::initializer_list<int64_t> want) {
  if (dims.size() != want.size()) return false;
  size_t i = 0;
  for (int64_t size : want)
    if (dims[i++] != size) return false;
  return true;
}

// Memory that holds anything.
template <typename T>
std::unique_ptr<T[]> scratch(int64_t size) {
  return std::unique_ptr<T[]>(new T[size > 0 ? size : 1]);
}

// The mesh of a picture of these dimensions, or what is wrong.
inline const char* mesh_of(Floats clip, Ints faces, ffi::Span<const int64_t> picture, Mesh* mesh) {
  const auto v = clip.dimensions(), f = faces.dimensions();
  if (v.size() != 2 || v[1] != 4 || f.size() != 2 || f[1] != 3 || picture.size() != 2)
    return "mesh: clip must be [V,4], faces [F,3] and the picture [H,W]";
  if (picture[0] < 1 || picture[1] < 1 || picture[0] > 32768 || picture[1] > 32768 || f[0] >= (int64_t{1} << 31) - 1)
    return "mesh: a picture has 1 to 32768 pixels along a side, and a mesh fewer than 2^31 - 1 faces";
  *mesh = {clip.typed_data(), v[0], faces.typed_data(), f[0], static_cast<int32_t>(picture[0]),
           static_cast<int32_t>(picture[1])};
  return nullptr;
}

// Whether every face of a picture is one of the mesh; else what is wrong.
inline const char* seen(const Mesh& mesh, const int32_t* face) {
  const int64_t pixels = int64_t{mesh.height} * mesh.width;
  int32_t low = 0, high = 0;
  for (int64_t i = 0; i < pixels; ++i) {
    low = face[i] < low ? face[i] : low;
    high = face[i] > high ? face[i] : high;
  }
  return low < 0 || high > mesh.count ? "mesh: the picture has a face that the mesh has not" : nullptr;
}

}  // namespace tkjax
