// Occupancy grids: thresholding into bits, and the 6-neighbour maximum in Morton order (tkjax/ops/packbits.py).
// No C++ standard library code: this header is part of every per-ISA source.
#pragma once

#include <cstdint>

#include "isa.h"
#include "pool.h"

// Bit i of out[n] is density[8 n + i] > threshold; cells is a multiple of 8.
TKJAX_DECLARE_KERNEL(void, packbits,
                     (const float* density, int64_t cells, float threshold, uint8_t* out, tkjax::Pool& pool))

// out[m] = the largest of cell m and its face neighbours inside the cube; side is a power of two.
TKJAX_DECLARE_KERNEL(void, dilate_morton, (const float* density, int32_t side, float* out, tkjax::Pool& pool))
