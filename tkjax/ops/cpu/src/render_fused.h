// Rays to pixels: march, field and compositing block by block of rays, for inference.
// No C++ standard library code: this header is part of every per-ISA source.
#pragma once

#include "field.h"
#include "isa.h"
#include "march.h"
#include "pool.h"

namespace tkjax {

struct RenderArgs {
  const Field* field;  // bound; its first output is sigma, all others are weighted
  MarchArgs march;     // prepared
  int64_t rays;
  const float *o, *d;  // [R,3]
  const float* row[FIELD_MAX_ROWS];  // [R,C] of rows that differ from ray to ray, null for the others
  float stop;
  float *weighted, *weight_sum, *depth;  // [R, channels - 1], [R], [R]
};

}  // namespace tkjax

// False: out of memory.
TKJAX_DECLARE_KERNEL(bool, render_fused, (const RenderArgs& args, Pool& pool))
