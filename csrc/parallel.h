// Threads over the items of a batch, for the CPU launchers.
//
// They belong to torch's own pool where that is GNU OpenMP's, looked up at run time: after each of
// its operators torch keeps its threads spinning for some milliseconds, so that other threads would
// wait that long for a core. This library links no OpenMP, whose second pool would spin as well.
//
// A pool does not survive fork(), which data-loader workers use. A process that was forked after it
// had loaded this library, and one without OpenMP, starts threads for each call (about 20 us);
// there the caller waits for shares that were begun, never for a thread to start. A process that
// was forked after torch had used the pool and loads this library itself is not recognised: its
// first parallel call hangs, as torch's own operators do in such a process.
#pragma once

#include <dlfcn.h>
#include <unistd.h>

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

// `void GOMP_parallel(function, argument, threads, flags)`: calls the function once on each thread
// of the caller's pool and waits. libgomp has it, and so have the OpenMP runtimes that replace it.
using Pool = void (*)(void (*)(void*), void*, unsigned, unsigned);
inline const pid_t kLoadedBy = getpid();

inline Pool pool() {
  static const Pool gomp = reinterpret_cast<Pool>(dlsym(RTLD_DEFAULT, "GOMP_parallel"));
  return getpid() == kLoadedBy ? gomp : nullptr;
}

// Calls body(worker, begin, end) on contiguous shares of [0, items); a worker has one share at a
// time. Every item is computed by the same instructions, whoever does it. body must not throw.
template <typename Body>
void parallel_for(int64_t items, int workers, const Body& body) {
  if (workers <= 1) {
    if (items) body(0, 0, items);
    return;
  }
  const int64_t size = std::max<int64_t>(1, items / (workers * kSharesPerWorker));
  if (const Pool on_each_thread = pool()) {
    struct Region {
      Shares<Body> shares;
      std::atomic<int> workers{0};
    } region{{body, items, size}};
    on_each_thread(
        [](void* argument) {
          auto* mine = static_cast<Region*>(argument);
          mine->shares.work(mine->workers.fetch_add(1));
        },
        &region, workers, 0);
    return;
  }
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
