// Eight numbers at once.

#pragma once

#include <immintrin.h>

#include <cstdint>

namespace dualcaps {

typedef float Lanes __attribute__((vector_size(32), aligned(4)));
constexpr int LANES = 8;

#define UNROLL _Pragma("GCC unroll 8")

inline Lanes& lanes(float* at) { return *reinterpret_cast<Lanes*>(at); }
inline const Lanes& lanes(const float* at) { return *reinterpret_cast<const Lanes*>(at); }

}  // namespace dualcaps
