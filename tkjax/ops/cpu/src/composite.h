// Compositing of samples along rays, forward and backward. Formulas and rules: tkjax/ops/composite.py.
// No C++ standard library code: this header is part of every per-ISA source.
#pragma once

#include <cstdint>

#include "isa.h"
#include "pool.h"

namespace tkjax {

struct CompositeIn {
  int32_t packed;                   // else dense
  int64_t rays, slots;              // dense: slots of each ray; packed: of all rays
  const int32_t *offset, *count;    // packed: samples of each ray, in order and without overlap
  const float *sigma, *t, *dt;      // one number a slot
  int32_t dt_each;                  // 0: dt is one number for all
  const uint8_t* valid;             // dense: one byte a slot
  const float *weighted, *plain;    // [slots, channels], [slots, plains]
  int32_t channels, plains;
  float stop;
};

struct CompositeOut {
  float *weighted, *plain, *weight_sum, *depth;  // [R,channels], [R,plains], [R], [R]
};

struct CompositeGrad {
  const float *weighted, *plain, *weight_sum, *depth;  // of the sums
  float *d_sigma, *d_t, *d_weighted, *d_plain;         // of the samples; every slot is written
};

// One sample more on a ray: its weight, and the transmittance behind it. False once the ray is finished.
// alpha and keep = 1 - alpha are those of composite_alpha.
static inline bool composite_step(float alpha, float keep, float stop, float* transmittance, float* weight) {
  *weight = alpha * *transmittance;
  *transmittance *= keep;
  return *transmittance >= stop;
}

constexpr int COMPOSITE_BLOCK = 16;

}  // namespace tkjax

// alpha = 1 - exp(-optical) and keep = exp(-optical) of n numbers; the arrays have room up to the next multiple of
// COMPOSITE_BLOCK, and what is there is read and written.
TKJAX_DECLARE_KERNEL(void, composite_alpha, (const float* optical, int n, float* alpha, float* keep))

TKJAX_DECLARE_KERNEL(void, composite_forward, (const CompositeIn& in, const CompositeOut& out, Pool& pool))
TKJAX_DECLARE_KERNEL(void, composite_backward, (const CompositeIn& in, const CompositeGrad& grad, Pool& pool))
