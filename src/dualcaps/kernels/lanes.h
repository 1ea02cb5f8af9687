// Eight numbers at once, which lie in memory as float32 or as bfloat16, of which uint16_t holds the bits.

#pragma once

#include <immintrin.h>

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <cstring>

namespace dualcaps {

typedef float Lanes __attribute__((vector_size(32), aligned(4)));
constexpr int LANES = 8;

#define UNROLL _Pragma("GCC unroll 16")

inline Lanes& lanes(float* at) { return *reinterpret_cast<Lanes*>(at); }
inline const Lanes& lanes(const float* at) { return *reinterpret_cast<const Lanes*>(at); }

inline Lanes read(const float* at) { return lanes(at); }
inline Lanes read(const uint16_t* at) {
  __m128i bits = _mm_loadu_si128(reinterpret_cast<const __m128i*>(at));
  return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(bits), 16));
}

inline void write(float* at, Lanes value) { lanes(at) = value; }
// Rounds to the nearest, ties to even.
inline void write(uint16_t* at, Lanes value) {
  __m256i bits = _mm256_castps_si256(value);
  __m256i odd = _mm256_and_si256(_mm256_srli_epi32(bits, 16), _mm256_set1_epi32(1));
  __m256i rounded = _mm256_add_epi32(bits, _mm256_add_epi32(odd, _mm256_set1_epi32(0x7fff)));
  __m256i nan = _mm256_castps_si256(_mm256_cmp_ps(value, value, _CMP_UNORD_Q));
  rounded = _mm256_srli_epi32(_mm256_blendv_epi8(rounded, _mm256_set1_epi32(0x7fc00000), nan), 16);
  __m256i packed = _mm256_permute4x64_epi64(_mm256_packus_epi32(rounded, rounded), 0x08);
  _mm_storeu_si128(reinterpret_cast<__m128i*>(at), _mm256_castsi256_si128(packed));
}

inline float to_float(float value) { return value; }
inline float to_float(uint16_t bits) {
  uint32_t wide = static_cast<uint32_t>(bits) << 16;
  float value;
  std::memcpy(&value, &wide, sizeof value);
  return value;
}

// Calls use(number) with a number of the type that a tensor has in memory.
template <typename Use>
void for_type(const at::Tensor& tensor, const Use& use) {
  TORCH_CHECK(tensor.scalar_type() == at::kFloat || tensor.scalar_type() == at::kBFloat16,
              "numbers must be float32 or bfloat16, got ", tensor.scalar_type());
  if (tensor.scalar_type() == at::kFloat) return use(float());
  use(uint16_t());
}

template <typename Number>
const Number* numbers(const at::Tensor& tensor) {
  return static_cast<const Number*>(tensor.const_data_ptr());
}
template <typename Number>
Number* mutable_numbers(const at::Tensor& tensor) {
  return static_cast<Number*>(tensor.mutable_data_ptr());
}

}  // namespace dualcaps
