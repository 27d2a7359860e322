"""Ways to change a file, for tests of who notices. Each is a function (path, data, other): the file at `path` gets contents made of
`data`; `other` is a name of the same file system that the way may use. Ways that keep the size fit `data` to it; most move the times
back, some never move them."""
import ctypes
import fcntl
import mmap
import os
import random
import struct
import time

PAGE = 4096
RENAME_EXCHANGE, AT_FDCWD = 2, -100
LIBC = ctypes.CDLL(None, use_errno=True)


class Impossible(Exception):
    """This file system has no such call, or not now."""


def fitted(data, size):
    return (data * (size // len(data) + 1))[:size]


def keeping_times(write):
    def keep(path, data, other):
        before = os.stat(path)
        write(path, data, other)
        os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    return keep


def write_through(fd, data):
    os.pwrite(fd, data, 0)
    os.ftruncate(fd, len(data))
    os.close(fd)


def put(path, data):
    write_through(os.open(path, os.O_WRONLY | os.O_CREAT), data)


def mapped(path):
    """A descriptor and a writable mapping whose pages are all there, so that no fault tells of a store."""
    fd = os.open(path, os.O_RDWR)
    view = mmap.mmap(fd, os.fstat(fd).st_size)
    sum(view[::PAGE])
    return fd, view


def store_into_a_mapping(path, data, _):
    fd, view = mapped(path)
    data, half = fitted(data, len(view)), len(view) // 2
    view[:half] = data[:half]
    time.sleep(random.random() * 0.002)
    view[half:] = data[half:]
    view.close()
    os.close(fd)


def store_after_the_close(path, data, _):
    fd, view = mapped(path)
    os.close(fd)
    time.sleep(0.01)
    view[:] = fitted(data, len(view))
    view.close()


@keeping_times
def rewrite(path, data, _):
    put(path, data)


@keeping_times
def truncate_and_append(path, data, _):
    os.truncate(path, 0)
    with open(path, 'ab') as file:
        file.write(data)


@keeping_times
def write_by_a_link(path, data, other):
    os.link(path, other + '.link')
    rewrite(other + '.link', data, other)
    os.unlink(other + '.link')


def exchange(*calls):
    """Gives the blocks of another file to this one, with the first of these ioctls that the file system has: (request, whether the
    file itself is called, its argument)."""
    def move(path, data, other):
        size = os.stat(path).st_size
        if size == 0:
            raise Impossible('there are no blocks')
        put(other, fitted(data, size))
        theirs, ours = os.open(other, os.O_RDWR), os.open(path, os.O_RDWR)
        reason = ''
        try:
            os.fsync(theirs)
            os.fsync(ours)
            for request, on_ours, argument in calls:
                try:
                    fcntl.ioctl(ours if on_ours else theirs, request, bytearray(argument(ours, theirs, size)))
                    os.fsync(ours)
                    os.posix_fadvise(ours, 0, 0, os.POSIX_FADV_DONTNEED)
                    return
                except OSError as error:
                    reason = error.strerror
            raise Impossible(reason)
        finally:
            os.close(theirs)
            os.close(ours)
    return move


def swapext_argument(ours, theirs, size):
    """struct xfs_swapext: version, descriptors, range, then a struct xfs_bstat of which the kernel compares mtime and ctime."""
    now = os.fstat(ours)
    times = b''.join(struct.pack('<qi4x', ns // 10**9, ns % 10**9) for ns in (now.st_mtime_ns, now.st_ctime_ns))
    return struct.pack('<qqqqq16x', 0, ours, theirs, 0, size) + bytes(56) + times + bytes(48)


EXT4_IOC_MOVE_EXT = exchange((0xC028660F, False, lambda ours, _, size: struct.pack('<IIQQQQ', 0, ours, 0, 0, -(-size // PAGE), 0)))
XFS_IOC_EXCHANGE_RANGE = exchange((0x40285881, False, lambda ours, _, size: struct.pack('<iIQQQQ', ours, 0, 0, 0, size, 0)),
                                  (0xC0C0586D, True, swapext_argument))  # XFS_IOC_SWAPEXT, which needs no feature of the file system


@keeping_times
def clone(path, data, other):
    put(other, fitted(data, os.stat(path).st_size))
    with open(other, 'rb') as source, open(path, 'r+b') as target:
        try:
            fcntl.ioctl(target, 0x40049409, source.fileno())  # FICLONE
        except OSError as error:
            raise Impossible(error.strerror) from error


@keeping_times
def collapse(path, data, _):
    fd = os.open(path, os.O_RDWR)
    try:
        for mode in (0x08, 0x20):  # FALLOC_FL_COLLAPSE_RANGE, then FALLOC_FL_INSERT_RANGE: the size is as before
            if LIBC.fallocate(fd, mode, ctypes.c_long(0), ctypes.c_long(PAGE)) != 0:
                raise Impossible(os.strerror(ctypes.get_errno()))
    finally:
        os.close(fd)


def exchange_names(path, data, other):
    put(other, data)
    if LIBC.renameat2(AT_FDCWD, os.fsencode(path), AT_FDCWD, os.fsencode(other), RENAME_EXCHANGE) != 0:
        raise Impossible(os.strerror(ctypes.get_errno()))
