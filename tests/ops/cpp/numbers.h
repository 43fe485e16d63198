// Random numbers for stress programs.
#pragma once

#include <cstdint>

// The same numbers everywhere.
struct Numbers {
  uint64_t state;
  explicit Numbers(uint64_t seed) : state(seed * 2654435761u + 12345) {}

  uint32_t next() {
    state = state * 6364136223846793005u + 1442695040888963407u;
    return static_cast<uint32_t>(state >> 33);
  }
  float unit() { return static_cast<float>(next()) * (1.0f / 2147483648.0f); }
};
