// Blocks of a cluster hand their values to the next one, by each way that csrc/cluster.cuh has.
// test_clusters.py calls it.
#include "cluster.cuh"

namespace {

using namespace fasthg;

// y of each block is x of the one before it in its cluster, which writes it there.
__global__ void push_kernel(const float* x, float* y, int size) {
  FASTHG_SHARED(shared);
  float* own = reinterpret_cast<float*>(shared);
  cluster_arrive();
  const int index = blockIdx.x * blockDim.x + threadIdx.x;
  const float value = x[index];
  cluster_wait();  // the next block must have started
  map_shared_rank(own, (cluster_rank() + 1) % size)[threadIdx.x] = value;
  cluster_sync();  // the value must have arrived
  y[index] = own[threadIdx.x];
}

// y of each block is x of the one after it in its cluster, from where it is read.
__global__ void pull_kernel(const float* x, float* y, int size) {
  FASTHG_SHARED(shared);
  float* own = reinterpret_cast<float*>(shared);
  const int index = blockIdx.x * blockDim.x + threadIdx.x;
  own[threadIdx.x] = x[index];
  cluster_sync();  // the next block must have written its value
  const float value = map_shared_rank(own, (cluster_rank() + 1) % size)[threadIdx.x];
  cluster_arrive();
  y[index] = value;
  cluster_wait();  // no block may return while another reads from it
}

// Writes to a block that may have returned.
__global__ void late_kernel(const float* x, float* y, int size) {
  FASTHG_SHARED(shared);
  float* own = reinterpret_cast<float*>(shared);
  cluster_sync();
  map_shared_rank(own, (cluster_rank() + 1) % size)[threadIdx.x] = x[threadIdx.x];
  y[blockIdx.x * blockDim.x + threadIdx.x] = 0;
}

__global__ void unpaired_kernel(const float*, float*, int) {
  cluster_wait();
}

}  // namespace

extern "C" __attribute__((visibility("default"))) const char* cluster_exchange(
    int way, const float* x, float* y, int blocks, int threads, int size) {
  void (*const kernels[])(const float*, float*, int) = {push_kernel, pull_kernel, late_kernel,
                                                        unpaired_kernel};
  ClusterLaunch launch(dim3(blocks), dim3(threads), size, threads * sizeof(float), nullptr);
  return launch.run(kernels[way], x, y, size);
}

extern "C" __attribute__((visibility("default"))) int cluster_count(int size) {
  return ClusterLaunch(dim3(size), dim3(32), size, most_shared_bytes(), nullptr)
      .active(push_kernel);
}
