// What the kernels share: vector loads, asynchronous copies, reductions, launching, dtype dispatch.
//
// The same kernels run on the host, one block at a time, under tests/emulation/cuda_emulation.h;
// launches and dynamic shared memory are macros for its sake.
#pragma once

#include <map>
#include <mutex>
#include <tuple>

#include "portable.h"

#ifdef FASTHG_CUDA_EMULATION
#include "cuda_emulation.h"
#else
#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_runtime.h>
#define FASTHG_LAUNCH(kernel, grid, block, shared_bytes, stream, ...) \
  kernel<<<grid, block, shared_bytes, static_cast<cudaStream_t>(stream)>>>(__VA_ARGS__)
// Sixteen-byte alignment suits every type that is carved from it.
#define FASTHG_SHARED(name) extern __shared__ __align__(16) unsigned char name[]
#endif

namespace fasthg {

constexpr int kWarp = 32;
constexpr int kMaximumWarps = 32;

// `count` neighbouring values in one memory transaction; 16 bytes is the widest there is.
template <typename T, int count>
struct alignas(sizeof(T) * count) Vector {
  T value[count];
};
template <typename T>
constexpr int kVectorLength = 16 / sizeof(T);

#ifdef FASTHG_CUDA_EMULATION
template <typename V>
V load_whole(const V* from) {
  return *from;
}
template <typename V>
void store_whole(const V& value, void* to) {
  *static_cast<V*>(to) = value;
}
template <typename V>
void keep_whole(const V& value, V* to) {
  *to = value;
}
#else
template <size_t bytes>
struct Words {
  using type = uint2;
};
template <>
struct Words<16> {
  using type = uint4;
};
// One access for a whole vector, where the compiler would otherwise split it: loads from shared
// memory and stores to it into halves, stores to global memory into words.
template <typename V>
__device__ __forceinline__ V load_whole(const V* from) {
  static_assert(sizeof(V) == 8 || sizeof(V) == 16, "half a vector, or one");
  using Whole = typename Words<sizeof(V)>::type;
  union Both {
    Whole words;
    V value;
    __device__ Both() {}
  } both;
  both.words = *reinterpret_cast<const Whole*>(from);
  return both.value;
}
template <typename V>
__device__ __forceinline__ void keep_whole(const V& value, V* to) {
  static_assert(sizeof(V) == 8 || sizeof(V) == 16, "half a vector, or one");
  using Whole = typename Words<sizeof(V)>::type;
  union Both {
    Whole words;
    V value;
    __device__ Both() {}
  } both;
  both.value = value;
  *reinterpret_cast<Whole*>(to) = both.words;
}
template <typename V>
__device__ __forceinline__ void store_whole(const V& value, void* to) {
  if constexpr (sizeof(V) == 16) {
    union Both {
      uint4 words;
      V value;
      __device__ Both() {}
    } both;
    both.value = value;
    asm volatile("st.global.v4.b32 [%0], {%1, %2, %3, %4};" ::"l"(to), "r"(both.words.x),
                 "r"(both.words.y), "r"(both.words.z), "r"(both.words.w)
                 : "memory");
  } else {
    *static_cast<V*>(to) = value;
  }
}
#endif

inline bool aligned16(const void* pointer) {
  return reinterpret_cast<uintptr_t>(pointer) % 16 == 0;
}

// Shuffle any type made of 32-bit words.
template <typename V>
__device__ V shuffle_xor(V value, int mask) {
  static_assert(sizeof(V) % 4 == 0, "shuffles move 32-bit words");
  union Words {
    V value;
    unsigned word[sizeof(V) / 4];
    __device__ Words() {}
  } words;
  words.value = value;
#pragma unroll
  for (unsigned& word : words.word) word = __shfl_xor_sync(0xffffffffu, word, mask);
  return words.value;
}

// copy_async copies `bytes` bytes, at most 16, from global to shared memory while the thread goes
// on, and fills them up to 16 with zeros. Both addresses are multiples of 16. A thread's copies
// since its last commit are a group. wait_for_copies returns when all groups of this thread but the
// `pending` latest have arrived; other threads' copies need a barrier as well.
#ifdef FASTHG_CUDA_EMULATION
inline void copy_async(void* to, const void* from, int bytes) {
  emulation::copy_async(to, from, bytes);
}
inline void commit_copies() {
  emulation::commit_copies();
}
template <int pending>
void wait_for_copies() {
  emulation::wait_for_copies(pending);
}
#else
__device__ __forceinline__ void copy_async(void* to, const void* from, int bytes) {
  const auto address = static_cast<uint32_t>(__cvta_generic_to_shared(to));
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;"
               :
               : "r"(address), "l"(from), "r"(bytes)
               : "memory");
}
__device__ __forceinline__ void commit_copies() {
  asm volatile("cp.async.commit_group;" ::: "memory");
}
template <int pending>
__device__ __forceinline__ void wait_for_copies() {
  asm volatile("cp.async.wait_group %0;" ::"n"(pending) : "memory");
}
#endif

// Combines one value of each thread; thread 0 returns the result. scratch: shared memory for
// kMaximumWarps values. The block is a multiple of a warp. The order is fixed, so sums repeat.
template <typename V, typename Combine>
__device__ V block_reduce(V value, V identity, V* scratch, Combine combine) {
  for (int mask = kWarp / 2; mask; mask /= 2) value = combine(value, shuffle_xor(value, mask));
  const int warp = threadIdx.x / kWarp, lane = threadIdx.x % kWarp;
  if (lane == 0) scratch[warp] = value;
  __syncthreads();  // every warp's value must lie in scratch before the first warp reads them
  if (warp == 0) {
    value = lane < static_cast<int>(blockDim.x) / kWarp ? scratch[lane] : identity;
    for (int mask = kWarp / 2; mask; mask /= 2) value = combine(value, shuffle_xor(value, mask));
  }
  return value;
}

// Makes a device current for a launch and restores the thread's own afterwards.
class DeviceGuard {
 public:
  explicit DeviceGuard(int device) {
    if (cudaGetDevice(&before_) != cudaSuccess) before_ = device;
    if (before_ != device) cudaSetDevice(device);
    changed_ = before_ != device;
  }
  ~DeviceGuard() {
    if (changed_) cudaSetDevice(before_);
  }
  DeviceGuard(const DeviceGuard&) = delete;

 private:
  int before_ = 0;
  bool changed_ = false;
};

// Raises an attribute of a kernel on the current device to `value`; whether it is that high. It is
// never lowered: another thread may be about to launch the kernel.
template <typename Kernel>
bool raise_attribute(Kernel* kernel, cudaFuncAttribute attribute, int value) {
  static std::mutex mutex;
  static std::map<std::tuple<Kernel*, int, int>, int> raised;
  int device = 0;
  cudaGetDevice(&device);
  const std::lock_guard<std::mutex> lock(mutex);
  int& now = raised[{kernel, attribute, device}];
  if (value <= now) return true;
  if (cudaFuncSetAttribute(kernel, attribute, value) == cudaSuccess) {
    now = value;
    return true;
  }
  cudaGetLastError();  // a refused attribute must not be blamed on the next launch
  return false;
}

// Allows a kernel more than the 48 KB of dynamic shared memory that need no request; returns null
// if the device has that much.
template <typename Kernel>
const char* allow_shared(Kernel* kernel, size_t bytes) {
  if (bytes <= 48 * 1024 ||
      raise_attribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, static_cast<int>(bytes)))
    return nullptr;
  return "the maps are too large for the GPU's shared memory: use fewer parts or smaller maps";
}

// An attribute of the current device.
inline int device_attribute(cudaDeviceAttr attribute) {
  int device = 0, value = 0;
  cudaGetDevice(&device);
  cudaDeviceGetAttribute(&value, attribute, device);
  return value;
}

FASTHG_HD int64_t divide_up(int64_t a, int64_t b) {
  return (a + b - 1) / b;
}

inline const char* launch_status() {
  const cudaError_t status = cudaGetLastError();
  return status == cudaSuccess ? nullptr : cudaGetErrorString(status);
}

// Calls body(T{}) with the storage type of a dtype code.
template <typename Body>
const char* dispatch(int dtype, const Body& body) {
  switch (dtype) {
    case kFloat32:
      return body(float{});
    case kFloat64:
      return body(double{});
    case kFloat16:
      return body(__half{});
    case kBFloat16:
      return body(__nv_bfloat16{});
  }
  return "unknown dtype code";
}

}  // namespace fasthg
