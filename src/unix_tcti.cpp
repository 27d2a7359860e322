#include "unix_tcti.h"

#include <poll.h>
#include <sys/socket.h>
#include <sys/un.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <thread>
#include <type_traits>

#include "imafs/bytes.h"
#include "imafs/fd_reserve.h"

namespace imafs {
namespace {

constexpr std::string_view kPrefix = "swtpm:path=";
constexpr std::uint64_t kMagic = 0x696d616673'75ULL;
constexpr std::chrono::milliseconds kQueueFull{1};
constexpr std::size_t kHeader = 10;  // tag, size, code: TCG TPM 2.0 Part 1, section 18
// A connection costs as much as a command: those that follow each other closely share one.
constexpr std::chrono::milliseconds kKeepIdle{2};
constexpr std::chrono::milliseconds kTurn{20};

}  // namespace

std::optional<std::string> UnixTcti::path_in(const std::string& tcti) {
  if (!tcti.starts_with(kPrefix)) return std::nullopt;
  std::string path = tcti.substr(kPrefix.size());
  if (path.empty() || path.find(',') != std::string::npos || path.size() >= sizeof sockaddr_un{}.sun_path) return std::nullopt;
  return path;
}

UnixTcti::UnixTcti(std::string path, std::chrono::milliseconds limit) : path_(std::move(path)), limit_(limit) {
  TSS2_TCTI_CONTEXT_COMMON_V1& common = common_.v1;
  common.magic = kMagic;
  common.version = 2;
  common.transmit = [](TSS2_TCTI_CONTEXT* context, std::size_t size, const std::uint8_t* command) {
    return of(context).transmit(command, size);
  };
  common.receive = [](TSS2_TCTI_CONTEXT* context, std::size_t* size, std::uint8_t* response, std::int32_t) {
    return of(context).receive(size, response);
  };
  common.finalize = [](TSS2_TCTI_CONTEXT*) {};
  common.cancel = [](TSS2_TCTI_CONTEXT*) -> TSS2_RC { return TSS2_TCTI_RC_NOT_IMPLEMENTED; };
  common.getPollHandles = [](TSS2_TCTI_CONTEXT*, TSS2_TCTI_POLL_HANDLE*, std::size_t*) -> TSS2_RC {
    return TSS2_TCTI_RC_NOT_IMPLEMENTED;
  };
  common.setLocality = [](TSS2_TCTI_CONTEXT*, std::uint8_t) -> TSS2_RC { return TSS2_TCTI_RC_NOT_IMPLEMENTED; };
  common_.makeSticky = [](TSS2_TCTI_CONTEXT*, TPM2_HANDLE*, std::uint8_t) -> TSS2_RC { return TSS2_TCTI_RC_NOT_IMPLEMENTED; };
  closer_ = std::thread([this] { close_idle(); });
}

UnixTcti::~UnixTcti() {
  {
    const std::lock_guard lock(mutex_);
    stopping_ = true;
  }
  changed_.notify_all();
  closer_.join();
}

UnixTcti& UnixTcti::of(TSS2_TCTI_CONTEXT* context) {
  static_assert(std::is_standard_layout_v<UnixTcti>);
  return *reinterpret_cast<UnixTcti*>(context);
}

// Whether the socket is ready before the command's time is over.
bool UnixTcti::wait_for(short events) {
  for (;;) {
    const auto left = std::chrono::duration_cast<std::chrono::milliseconds>(deadline_ - std::chrono::steady_clock::now());
    struct pollfd watched {socket_.get(), events, 0};
    const int ready = ::poll(&watched, 1, static_cast<int>(std::max<std::int64_t>(0, left.count())));
    if (ready > 0) return true;
    if (ready < 0 && errno == EINTR) continue;
    timed_out_ = ready == 0;
    return false;
  }
}

bool UnixTcti::connect() {
  UniqueFd made = FdReserve::of_process().make([] { return ::socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0); });
  if (!made) return false;
  struct sockaddr_un address {};
  address.sun_family = AF_UNIX;
  path_.copy(address.sun_path, sizeof address.sun_path - 1);
  // With a full queue of connections a nonblocking connect(2) to a unix socket does not begin: EAGAIN.
  while (::connect(made.get(), reinterpret_cast<const struct sockaddr*>(&address), sizeof address) != 0) {
    if (errno != EAGAIN && errno != EINTR) return false;
    timed_out_ = std::chrono::steady_clock::now() >= deadline_;
    if (timed_out_) return false;
    std::this_thread::sleep_for(kQueueFull);
  }
  const std::lock_guard lock(mutex_);
  socket_ = std::move(made);
  connected_ = std::chrono::steady_clock::now();
  changed_.notify_all();
  return true;
}

// The time of a command begins. Takes the connection that is open, if its turn is not over and the other side is there.
void UnixTcti::begin_command() {
  timed_out_ = false;
  deadline_ = std::chrono::steady_clock::now() + limit_;
  const std::lock_guard lock(mutex_);
  in_command_ = true;
  std::uint8_t unexpected = 0;
  if (socket_ && (std::chrono::steady_clock::now() - connected_ >= kTurn ||
                  ::recv(socket_.get(), &unexpected, 1, MSG_PEEK | MSG_DONTWAIT) >= 0 || errno != EAGAIN)) {
    FdReserve::of_process().give_back(std::move(socket_));
  }
}

void UnixTcti::end_command(bool keep) {
  const std::lock_guard lock(mutex_);
  if (!keep) FdReserve::of_process().give_back(std::move(socket_));
  in_command_ = false;
  last_command_ = std::chrono::steady_clock::now();
}

void UnixTcti::close_idle() {
  std::unique_lock lock(mutex_);
  while (!stopping_) {
    if (!socket_) {
      changed_.wait(lock);
      continue;
    }
    changed_.wait_for(lock, kKeepIdle);
    if (!in_command_ && std::chrono::steady_clock::now() - last_command_ >= kKeepIdle) FdReserve::of_process().give_back(std::move(socket_));
  }
}

bool UnixTcti::can_connect() {
  begin_command();
  const bool can = socket_ || connect();
  end_command(can);
  return can;
}

TSS2_RC UnixTcti::transmit(const std::uint8_t* command, std::size_t size) {
  begin_command();
  const bool sent = (socket_ || connect()) && send_all(command, size);
  if (!sent) end_command(false);
  return sent ? TSS2_RC_SUCCESS : TSS2_TCTI_RC_IO_ERROR;
}

bool UnixTcti::send_all(const std::uint8_t* from, std::size_t size) {
  for (std::size_t done = 0; done < size;) {
    const ssize_t sent = ::send(socket_.get(), from + done, size - done, MSG_NOSIGNAL);
    if (sent > 0) done += static_cast<std::size_t>(sent);
    if (sent < 0 && errno == EINTR) continue;
    if (sent < 0 && (errno != EAGAIN || !wait_for(POLLOUT))) return false;
  }
  return true;
}

TSS2_RC UnixTcti::receive(std::size_t* size, std::uint8_t* response) {
  // Asked for the size alone: a response is never larger than what the TSS has room for.
  if (!response) {
    *size = TPM2_MAX_RESPONSE_SIZE;
    return TSS2_RC_SUCCESS;
  }
  const TSS2_RC code = receive_whole(*size, response);
  end_command(code == TSS2_RC_SUCCESS);
  return code;
}

// `size`: the room there is, then what was received.
TSS2_RC UnixTcti::receive_whole(std::size_t& size, std::uint8_t* response) {
  const std::size_t room = size;
  if (room < kHeader) return TSS2_TCTI_RC_INSUFFICIENT_BUFFER;
  std::size_t whole = kHeader;
  for (size = 0; size < whole;) {
    if (!wait_for(POLLIN)) return TSS2_TCTI_RC_IO_ERROR;
    const ssize_t got = ::recv(socket_.get(), response + size, room - size, 0);
    if (got > 0) size += static_cast<std::size_t>(got);
    if (got == 0 || (got < 0 && errno != EINTR && errno != EAGAIN)) return TSS2_TCTI_RC_IO_ERROR;
    if (size >= kHeader) whole = load_be32(ByteView(response + 2, 4));
    if (whole < kHeader || whole > room) return TSS2_TCTI_RC_MALFORMED_RESPONSE;
  }
  return size == whole ? TSS2_RC_SUCCESS : TSS2_TCTI_RC_MALFORMED_RESPONSE;
}

}  // namespace imafs
