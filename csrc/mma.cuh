// Tensor core products of half types: warp-wide, with fragments as the PTX ISA lays them out for
// mma.m16n8k16 (all GPUs from compute capability 8.0 on).
//
// Of lane l, let g = l / 4 and t = l % 4. Fragments hold pairs of values that are neighbours in k:
//   a (16 x 16): {row g, k 2t}, {row g + 8, k 2t}, {row g, k 2t + 8}, {row g + 8, k 2t + 8}
//   b (16 x 8):  {k 2t, column g}, {k 2t + 8, column g}
//   c (16 x 8):  row g at columns 2t, 2t + 1, then row g + 8 at the same columns; float
#pragma once

#include "cuda_utils.cuh"

namespace fasthg {

// c += a b. T: __half or __nv_bfloat16.
template <typename T>
__device__ void mma_16x8x16(const uint32_t (&a)[4], const uint32_t (&b)[2], float (&c)[4]);

// Four 8 x 8 matrices from shared memory: lane 8i + r gives the 16-byte row r of matrix i; each
// lane receives, as piece i, the pair at row g, columns 2t and 2t + 1 of matrix i. Transposed: the
// pair at rows 2t and 2t + 1, column g. Rows start at multiples of 16 bytes.
template <bool transposed>
__device__ void load_matrices(const void* row, uint32_t (&pieces)[4]);

#ifdef FASTHG_CUDA_EMULATION

template <typename T>
void mma_16x8x16(const uint32_t (&a)[4], const uint32_t (&b)[2], float (&c)[4]) {
  emulation::multiply_add<T>(a, b, c);
}

template <bool transposed>
void load_matrices(const void* row, uint32_t (&pieces)[4]) {
  emulation::load_matrices(row, transposed, pieces);
}

#else

#define FASTHG_MMA(T, name)                                                                      \
  template <>                                                                                    \
  __device__ __forceinline__ void mma_16x8x16<T>(const uint32_t (&a)[4], const uint32_t (&b)[2], \
                                                 float (&c)[4]) {                                \
    asm volatile("mma.sync.aligned.m16n8k16.row.col.f32." name "." name                          \
                 ".f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"          \
                 : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])                                \
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));            \
  }
FASTHG_MMA(__half, "f16")
FASTHG_MMA(__nv_bfloat16, "bf16")
#undef FASTHG_MMA

template <bool transposed>
__device__ void load_matrices(const void* row, uint32_t (&pieces)[4]) {
  const auto address = static_cast<uint32_t>(__cvta_generic_to_shared(row));
  if (transposed)
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(pieces[0]), "=r"(pieces[1]), "=r"(pieces[2]), "=r"(pieces[3])
                 : "r"(address)
                 : "memory");
  else
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(pieces[0]), "=r"(pieces[1]), "=r"(pieces[2]), "=r"(pieces[3])
                 : "r"(address)
                 : "memory");
}

#endif

}  // namespace fasthg
