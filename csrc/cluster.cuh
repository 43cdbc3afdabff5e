// Clusters of thread blocks (compute capability 9.0 and later): blocks that run at the same time,
// wait for each other and reach each other's shared memory.
//
// cluster_sync() is a barrier of all threads of a cluster; cluster_arrive() and a later
// cluster_wait() are its two halves. What a thread wrote before its arrival, others see after their
// wait. Two rules come with another block's shared memory: the block must have started, which a
// barrier says, and must not return before the last access, which another one says.
//
// A kernel that calls these stands between `#if FASTHG_CLUSTERS` and `#endif`, and is launched
// where `active_clusters` counts at least one: for older GPUs it is compiled empty.
#pragma once

#include "cuda_utils.cuh"

#if defined(FASTHG_CUDA_EMULATION) || !defined(__CUDA_ARCH__) || __CUDA_ARCH__ >= 900
#define FASTHG_CLUSTERS 1
#else
#define FASTHG_CLUSTERS 0
#endif

namespace fasthg {

#ifdef FASTHG_CUDA_EMULATION

// Of this block in its cluster, from 0.
inline int cluster_rank() {
  return emulation::machine.rank;
}

// The same variable in the shared memory of another block of the cluster.
template <typename V>
V* map_shared_rank(V* address, int rank) {
  emulation::Machine& machine = emulation::machine;
  const auto own = reinterpret_cast<unsigned char*>(address) - machine.shared_of(machine.rank);
  return reinterpret_cast<V*>(machine.shared_of(rank) + own);
}

#elif FASTHG_CLUSTERS

__device__ __forceinline__ int cluster_rank() {
  uint32_t rank;
  asm volatile("mov.u32 %0, %%cluster_ctarank;" : "=r"(rank));
  return static_cast<int>(rank);
}

template <typename V>
__device__ __forceinline__ V* map_shared_rank(V* address, int rank) {
  uint64_t mapped;
  asm("mapa.u64 %0, %1, %2;" : "=l"(mapped) : "l"(address), "r"(rank));
  return reinterpret_cast<V*>(mapped);
}

__device__ __forceinline__ void cluster_arrive() {
  asm volatile("barrier.cluster.arrive.release.aligned;" ::: "memory");
}

__device__ __forceinline__ void cluster_wait() {
  asm volatile("barrier.cluster.wait.acquire.aligned;" ::: "memory");
}

__device__ __forceinline__ void cluster_sync() {
  asm volatile(
      "barrier.cluster.arrive.release.aligned;\n\t"
      "barrier.cluster.wait.acquire.aligned;" ::
          : "memory");
}

#endif

// A launch in clusters of `size` blocks that are neighbours in x.
class ClusterLaunch {
 public:
  ClusterLaunch(dim3 blocks, dim3 threads, int size, size_t bytes, void* stream) {
    attribute_.id = cudaLaunchAttributeClusterDimension;
    attribute_.val.clusterDim.x = size;
    attribute_.val.clusterDim.y = attribute_.val.clusterDim.z = 1;
    config_.gridDim = blocks;
    config_.blockDim = threads;
    config_.dynamicSmemBytes = bytes;
    config_.stream = static_cast<cudaStream_t>(stream);
    config_.attrs = &attribute_;
    config_.numAttrs = 1;
  }
  ClusterLaunch(const ClusterLaunch&) = delete;

  // Returns null, or what was refused.
  template <typename... Parameters>
  const char* run(void (*kernel)(Parameters...), const Parameters&... arguments) {
    if (const char* refusal = allow(kernel)) return refusal;
    cudaLaunchKernelEx(&config_, kernel, arguments...);
    return launch_status();
  }

  // How many of these clusters the current device holds at once; 0 where it has no clusters, the
  // kernel was compiled without them, or a cluster is too large.
  template <typename... Parameters>
  int active(void (*kernel)(Parameters...)) {
    int device = 0, major = 0, count = 0;
    cudaFuncAttributes attributes{};
    cudaGetDevice(&device);
    const bool counted =
        cudaDeviceGetAttribute(&major, cudaDevAttrComputeCapabilityMajor, device) == cudaSuccess &&
        major >= 9 && cudaFuncGetAttributes(&attributes, kernel) == cudaSuccess &&
        attributes.ptxVersion >= 90 && !allow(kernel) &&
        cudaOccupancyMaxActiveClusters(&count, kernel, &config_) == cudaSuccess;
    cudaGetLastError();  // a refusal must not be blamed on the next launch
    return counted ? count : 0;
  }

 private:
  // Clusters of more than 8 blocks, which not every device has, need leave.
  template <typename Kernel>
  const char* allow(Kernel* kernel) {
    if (attribute_.val.clusterDim.x > 8 &&
        !raise_attribute(kernel, cudaFuncAttributeNonPortableClusterSizeAllowed, 1))
      return "the GPU has no clusters of more than 8 blocks";
    return allow_shared(kernel, config_.dynamicSmemBytes);
  }

  cudaLaunchAttribute attribute_{};
  cudaLaunchConfig_t config_{};
};

// The bytes of shared memory that a block of the current device may ask for.
inline size_t most_shared_bytes() {
  return static_cast<size_t>(device_attribute(cudaDevAttrMaxSharedMemoryPerBlockOptin));
}

}  // namespace fasthg
