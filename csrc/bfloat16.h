// What the CPU kernels store and load: bfloat16 as bits, computed with in float.
#pragma once

#include <cstdint>
#include <cstring>

#include "portable.h"

namespace fasthg {

struct BFloat16 {
  uint16_t bits;
};

FASTHG_HD float widen(float value) {
  return value;
}
FASTHG_HD double widen(double value) {
  return value;
}
FASTHG_HD float widen(BFloat16 value) {
  const uint32_t word = static_cast<uint32_t>(value.bits) << 16;
  float result;
  std::memcpy(&result, &word, sizeof result);
  return result;
}

FASTHG_HD void store(float value, float* out) {
  *out = value;
}
FASTHG_HD void store(double value, double* out) {
  *out = value;
}
FASTHG_HD void store(float value, BFloat16* out) {
  uint32_t word;
  std::memcpy(&word, &value, sizeof word);
  word += 0x7fffu + (word >> 16 & 1u);  // to nearest, ties to even
  word = value == value ? word : 0x7fff0000u;
  out->bits = static_cast<uint16_t>(word >> 16);
}

// Calls body(T{}) with the storage type of a dtype code; null, or the refusal of any other.
template <typename Body>
const char* dispatch(int dtype, const char* refusal, const Body& body) {
  if (dtype == kFloat32)
    body(float{});
  else if (dtype == kFloat64)
    body(double{});
  else if (dtype == kBFloat16)
    body(BFloat16{});
  else
    return refusal;
  return nullptr;
}

}  // namespace fasthg
