// What every file of csrc may see: host/device macros, dtype codes, and the description of targets.
#pragma once

#include <cstdint>

#if defined(__CUDACC__)
#define FASTHG_HD __host__ __device__ __forceinline__
#else
#define FASTHG_HD inline __attribute__((always_inline))
#endif

// One function, compiled for several vector widths and picked when the library is loaded: wheels
// stay portable and the loops still use AVX-512 where the machine has it. Needs GNU indirect
// functions, and GCC 12 for the levels that stand for whole generations of processors: single
// features come without fused multiply-add and 16-bit lanes. FASTHG_NATIVE=1 at build time compiles
// everything for the building machine instead.
#if defined(__x86_64__) && defined(__GLIBC__) && defined(__GNUC__) && !defined(__clang__) && \
    !defined(FASTHG_NATIVE) && !defined(__CUDACC__)
#if __GNUC__ >= 12
#define FASTHG_VECTOR_CLONES \
  __attribute__((target_clones("arch=x86-64-v4", "arch=x86-64-v3", "default")))
#else
#define FASTHG_VECTOR_CLONES __attribute__((target_clones("avx512f", "avx2", "default")))
#endif
#else
#define FASTHG_VECTOR_CLONES
#endif

namespace fasthg {

// The values are those of DTYPE_CODES in fasthg/ops/_native.py.
enum Dtype : int { kFloat32 = 0, kFloat64 = 1, kFloat16 = 2, kBFloat16 = 3 };

// The type of the arithmetic for values stored as T.
template <typename T>
struct Accumulate {
  using type = float;
};
template <>
struct Accumulate<double> {
  using type = double;
};

// Keypoints that stand for Gaussian target maps. Real numbers are in the accumulate type of the
// operator's dtype: double for float64, float for all others.
struct Targets {
  const void* keypoints;      // (batch, parts, 2): x, y in heatmap cells
  const void* sigmas;         // (batch, parts) or, with sigma_stride 0, (parts,); heatmap cells
  const uint8_t* visibility;  // (batch, parts), 0 = empty map; null = all visible
  int64_t sigma_stride;       // parts, or 0
  int32_t batch;
  int32_t parts;
  int32_t height;
  int32_t width;
  bool subpixel;  // false: centres are rounded to the nearest cell, half to even
};

// Batch norm over rows of channels: an image batch with channels last, without gaps. Real numbers
// are in the accumulate type of the operator's dtype.
struct BatchNorm {
  const void* beta;   // (channels,), added after the scale
  const void* gamma;  // (channels,), the scale; null = 1
  void* mean;         // (channels,), written by the forward unless frozen
  void* var;          // (channels,), biased, likewise
  void* workspace;    // (parts, 2, channels): sums over the rows of each part
  int64_t rows;       // batch x height x width
  int64_t channels;
  int64_t parts;  // of the rows: alone decides the order of summation
  double eps;     // added to var
  bool relu;
  bool frozen;  // mean and var are given, and constants to the backward
};

}  // namespace fasthg
