// What the handlers that march share: settings as attributes, checked. Only for …_ffi.cc.
#pragma once

#include <algorithm>
#include <initializer_list>

#include "ffi_common.h"
#include "march.h"

namespace tkjax {

using Floats = ffi::Buffer<ffi::F32>;
using OutFloats = ffi::Result<Floats>;
using OutInts = ffi::Result<ffi::Buffer<ffi::S32>>;

inline bool shaped(ffi::AnyBuffer::Dimensions dims, std::initializer_list<int64_t> want) {
  return dims.size() == want.size() && std::equal(dims.begin(), dims.end(), want.begin());
}

struct Settings {
  int32_t side, cascades, vertex, samples;
  ffi::Span<const float> box;
  float dt, t_min, bound, dt_gamma, dt_max;
};

// Checks what would make the kernel read or write out of bounds, or not end.
inline const char* prepare(const Settings& s, Floats o, Floats d, ffi::Buffer<ffi::U8> bits, MarchArgs* out) {
  const auto dims = o.dimensions();
  if (dims.size() != 2 || dims[1] != 3 || !shaped(d.dimensions(), {dims[0], 3}))
    return "march: origins and directions must be [R,3]";
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

}  // namespace tkjax
