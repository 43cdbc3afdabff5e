// Threads over the items of a batch, for the CPU launchers.
//
// No OpenMP: a second pool beside torch's would spin for the same cores, and GNU's does not survive
// fork(), which data-loader workers use. Threads are started for each call instead (about 20 us,
// so small work stays on the caller), and the caller waits for work that was begun, never for a
// thread to start: after each of its own operators torch keeps the other cores spinning for some
// milliseconds, and a new thread may have to wait that long for its turn.
#pragma once

#include <algorithm>
#include <atomic>
#include <condition_variable>
#include <cstdint>
#include <memory>
#include <mutex>
#include <system_error>
#include <thread>

namespace fasthg {

constexpr int64_t kElementsPerThread = 1 << 16;
constexpr int64_t kSharesPerWorker = 4;

inline int worker_count(int64_t items, int64_t elements_per_item, int threads) {
  const int64_t useful = items * elements_per_item / kElementsPerThread;
  return static_cast<int>(std::max<int64_t>(1, std::min<int64_t>({useful, items, threads})));
}

template <typename Body>
class Shares {
 public:
  Shares(const Body& body, int64_t items, int64_t size) : body_(body), items_(items), size_(size) {}

  void work(int worker) {
    int64_t begin;
    while ((begin = next_.fetch_add(size_)) < items_) {
      // The caller's frame, where the body lives, stands as long as a share is unfinished.
      const int64_t end = std::min(begin + size_, items_);
      body_(worker, begin, end);
      const std::lock_guard<std::mutex> lock(mutex_);
      finished_ += end - begin;
      if (finished_ == items_) all_finished_.notify_one();
    }
  }

  void wait() {
    std::unique_lock<std::mutex> lock(mutex_);
    all_finished_.wait(lock, [this] { return finished_ == items_; });
  }

 private:
  const Body& body_;
  const int64_t items_, size_;
  std::atomic<int64_t> next_{0};
  std::mutex mutex_;
  std::condition_variable all_finished_;
  int64_t finished_ = 0;
};

// Calls body(worker, begin, end) on contiguous shares of [0, items); a worker has one share at a
// time. Every item is computed by the same instructions, whoever does it. body must not throw.
template <typename Body>
void parallel_for(int64_t items, int workers, const Body& body) {
  const int64_t size = std::max<int64_t>(1, items / (workers * kSharesPerWorker));
  // Shared ownership: a thread that starts late still needs to read that nothing is left.
  const auto shares = std::make_shared<Shares<Body>>(body, items, size);
  try {
    for (int worker = 1; worker < workers; ++worker)
      std::thread([shares, worker] { shares->work(worker); }).detach();
  } catch (const std::system_error&) {
    // No more threads to be had from the system: those there are, and the caller, do the work.
  }
  shares->work(0);
  shares->wait();
}

}  // namespace fasthg
