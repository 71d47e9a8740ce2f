#include "mapped_file.h"

#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <system_error>

namespace jaxrank::tables {
namespace {

constexpr uint64_t kHugePage = 2 << 20;
constexpr uint64_t kReadAtOnce = 64 << 20;
constexpr uint64_t kPage = 4096;  // the smallest that any system has

[[noreturn]] void fail(const std::string& what) { throw std::system_error(errno, std::generic_category(), what); }

struct Descriptor {
  int fd;
  ~Descriptor() { close(fd); }
};

void read_all(int fd, std::byte* data, uint64_t size, const std::string& path) {
  for (uint64_t at = 0; at < size;) {
    const ssize_t got = pread(fd, data + at, std::min(size - at, kReadAtOnce), static_cast<off_t>(at));
    if (got < 0 && errno == EINTR) continue;
    if (got < 0) fail(path + " cannot be read");
    if (got == 0) {
      errno = EIO;
      fail(path + " became shorter while it was read");
    }
    at += static_cast<uint64_t>(got);
  }
}

}  // namespace

MappedFile::MappedFile(const std::string& path, const MapOptions& options) {
  const Descriptor file{open(path.c_str(), O_RDONLY | O_CLOEXEC)};
  if (file.fd < 0) fail(path + " cannot be opened");
  struct stat status;
  if (fstat(file.fd, &status) != 0) fail(path + " cannot be examined");
  if (!S_ISREG(status.st_mode)) {
    errno = S_ISDIR(status.st_mode) ? EISDIR : EINVAL;
    fail(path + " is no regular file");
  }
  size_ = static_cast<uint64_t>(status.st_size);
  // At least a page, so that an empty file has an address too: nothing of it is read.
  mapped_ = std::max<uint64_t>(size_, 1);
  copied_ = options.huge_pages;
  if (copied_) mapped_ = (mapped_ + kHugePage - 1) / kHugePage * kHugePage;
  const int flags = copied_ ? MAP_PRIVATE | MAP_ANONYMOUS : MAP_SHARED;
  void* const mapped = mmap(nullptr, mapped_, copied_ ? PROT_READ | PROT_WRITE : PROT_READ, flags, copied_ ? -1 : file.fd, 0);
  if (mapped == MAP_FAILED) fail(path + " cannot be mapped");
  data_ = static_cast<std::byte*>(mapped);
  try {
    // Advice may be refused by a kernel that lacks it, and changes no answer.
    if (copied_) {
      madvise(data_, mapped_, MADV_HUGEPAGE);
      read_all(file.fd, data_, size_, path);
      if (mprotect(data_, mapped_, PROT_READ) != 0) fail(path + ": its copy cannot be protected");
    } else if (options.prefault) {
      // Huge pages also in the page cache, where the file system has them.
      madvise(data_, mapped_, MADV_HUGEPAGE);
      madvise(data_, mapped_, MADV_WILLNEED);
      for (uint64_t at = 0; at < size_; at += kPage) static_cast<void>(*static_cast<volatile std::byte*>(data_ + at));
    } else {
      // A row at a time: with huge pages, or read ahead, each would bring megabytes into memory.
      madvise(data_, mapped_, MADV_RANDOM);
    }
    if (options.lock && mlock(data_, mapped_) != 0)
      fail(path + " cannot be locked in memory (raise the limit: ulimit -l, or LimitMEMLOCK= of the service)");
  } catch (...) {
    munmap(data_, mapped_);
    throw;
  }
}

MappedFile::~MappedFile() { munmap(data_, mapped_); }

void MappedFile::forget_pages() const {
  if (!copied_) madvise(data_, mapped_, MADV_DONTNEED);
}

}  // namespace jaxrank::tables
