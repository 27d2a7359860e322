#!/usr/bin/env python3
"""Nobody waits for somebody else: who blocks x what others do. Each cell has a time limit; the names of those that fail are printed.

Not counted as somebody else: who opens the very file that is held up, and who changes the very file system that is frozen."""
import contextlib
import fcntl
import os
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
import time

from mounting import Mount, need_mounts, seen_within

NOBODY = 65534
failed = []
cells = 0


def cell(name, passed, told=''):
    global cells
    cells += 1
    if not passed:
        failed.append(name)
        print(f'FAILS {name} {told}', flush=True)


class Child:
    """A process of its own that does one thing as a user: whatever it hangs in, the test goes on."""

    def __init__(self, act, uid=0):
        self.pid = os.fork()
        if self.pid == 0:
            code = 1
            try:
                if uid:
                    os.setgroups([])
                    os.setresgid(uid, uid, uid)
                    os.setresuid(uid, uid, uid)
                code = act() or 0
            except OSError as error:
                code = 200 if error.errno is None else min(error.errno, 199)
            finally:
                os._exit(code)
        self.code = None

    def ended_within(self, seconds):
        end = time.monotonic() + seconds
        while self.code is None:
            pid, status = os.waitpid(self.pid, os.WNOHANG)
            if pid:
                self.code = os.waitstatus_to_exitcode(status)
            elif time.monotonic() > end:
                return False
            else:
                time.sleep(0.005)
        return True

    def kill(self):
        if self.code is None:
            os.kill(self.pid, signal.SIGKILL)

    def within(self, seconds):
        """Whether it ended well in time."""
        ended = self.ended_within(seconds)
        if not ended:
            self.kill()
        return ended and self.code == 0


def read(path):
    with open(path, 'rb') as file:
        return file.read()


def write(path, data=b'x', mode=0o644):
    with open(path, 'wb') as file:
        file.write(data)
    os.chmod(path, mode)


class Tree:
    """What the others need: known files, and new ones for each scenario."""

    def __init__(self, backing, path):
        self.backing, self.path, self.used = backing, path, 0
        os.makedirs(backing + '/user', exist_ok=True)
        os.chown(backing + '/user', NOBODY, NOBODY)
        os.makedirs(backing + '/others', exist_ok=True)
        os.chmod(backing + '/others', 0o777)
        write(backing + '/others/known')
        for i in range(40):
            write(f'{backing}/others/small{i}')
            write(f'{backing}/others/big{i}', os.urandom(1024 * 1024))

    def fresh(self):
        self.used += 1
        return self.used


def others(mount, tree, uid):
    """What others do meanwhile: name, act."""
    here = mount.path + '/others'
    n = tree.fresh()
    return [
        ('open a known file', lambda: len(read(here + '/known')) - 1),
        ('open a small file', lambda: len(read(f'{here}/small{n}')) - 1),
        ('open a file of 1 MiB', lambda: len(read(f'{here}/big{n}')) - 1024 * 1024),
        ('stat', lambda: os.stat(here + '/known') and 0),
        ('readdir', lambda: 0 if os.listdir(here) else 1),
        ('create', lambda: write(f'{here}/new{n}-{uid}')),
        ('truncate', lambda: os.truncate(f'{here}/new{n}-{uid}', 3)),
        ('rename', lambda: os.rename(f'{here}/new{n}-{uid}', f'{here}/renamed{n}-{uid}')),
        ('unlink', lambda: os.unlink(f'{here}/renamed{n}-{uid}')),
    ]


def check_others(scenario, mount, tree, uids=(0, 1000), limit=2.0):
    for uid in uids:
        for name, act in others(mount, tree, uid):
            cell(f'{scenario} x {name} by {uid}', Child(act, uid).within(limit))
    cell(f'{scenario} x .ima/status', Child(lambda: 0 if read(mount.path + '/.ima/status') else 1).within(limit))
    cell(f'{scenario} x statfs', Child(lambda: os.statvfs(mount.path) and 0).within(limit))


# ---- who blocks ----

@contextlib.contextmanager
def leases(directory, count, name):
    """Somebody outside the mount holds write leases on `count` files of his."""
    held = []
    old = signal.signal(signal.SIGIO, signal.SIG_IGN)
    try:
        for i in range(count):
            fd = os.open(f'{directory}/{name}{i}', os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o666)
            os.fchown(fd, NOBODY, NOBODY)
            fcntl.fcntl(fd, fcntl.F_SETLEASE, fcntl.F_WRLCK)
            held.append(fd)
        yield [f'{name}{i}' for i in range(count)]
    finally:
        for fd in held:
            fcntl.fcntl(fd, fcntl.F_SETLEASE, fcntl.F_UNLCK)
            os.close(fd)
        signal.signal(signal.SIGIO, old)


WAITS = {
    'open for reading': lambda path: os.close(os.open(path, os.O_RDONLY)),
    'open for writing': lambda path: os.close(os.open(path, os.O_WRONLY)),
    'open with O_TRUNC': lambda path: os.close(os.open(path, os.O_WRONLY | os.O_TRUNC)),
    'open O_RDONLY with O_TRUNC': lambda path: os.close(os.open(path, os.O_RDONLY | os.O_TRUNC)),
    'truncate': lambda path: os.truncate(path, 0),
}


def foreign_leases(mount, tree):
    for name, wait in WAITS.items():
        with leases(tree.backing + '/user', 20, f'leased-{tree.fresh()}-') as names:
            blocked = [Child(lambda leaf=leaf: wait(f'{mount.path}/user/{leaf}'), NOBODY) for leaf in names]
            time.sleep(0.3)
            check_others(f'foreign leases, {name}', mount, tree, uids=(1000,))
            # The kernel ends a lease after 45 s, and until then it holds up the opener alone, who can be killed.
            cell(f'foreign leases, {name} x the opener waits', not blocked[0].ended_within(0))
            blocked[1].kill()
            cell(f'foreign leases, {name} x the opener can be killed', blocked[1].ended_within(2))
        late = [child.code for child in [blocked[0], *blocked[2:]] if not child.within(10)]
        cell(f'foreign leases, {name} x the openers go on afterwards', not late, f'{late}')


# ---- descriptors ----

def descriptors(mount):
    return len(os.listdir(f'/proc/{mount.daemon_pid()}/fd'))


def failing_removals(mount, tree):
    """A removal that fails costs no descriptor."""
    here = mount.path + '/user'
    for i in range(60):
        os.makedirs(f'{tree.backing}/user/full{i}/x')
        os.makedirs(f'{tree.backing}/user/other{i}')
        write(f'{tree.backing}/user/file{i}')
        os.stat(f'{here}/full{i}')
        os.stat(f'{here}/file{i}')
    tries = {
        'rmdir': lambda i: os.rmdir(f'{here}/full{i}'),
        'rename over': lambda i: os.rename(f'{here}/other{i}', f'{here}/full{i}'),
        'unlink': lambda i: os.unlink(f'{here}/full{i}'),
        'rename a file over a directory': lambda i: os.rename(f'{here}/file{i}', f'{here}/full{i}'),
    }
    for name, act in tries.items():
        # What is kept for speed is bounded: a second round over the same files adds nothing.
        for _ in range(2):
            before = descriptors(mount)
            for i in range(60):
                with contextlib.suppress(OSError):
                    act(i)
                    raise AssertionError('it was to fail')
            time.sleep(0.1)
        grown = descriptors(mount) - before
        cell(f'failing {name} x descriptors', grown < 20, f'{grown} more')


def hoard(act, uid=NOBODY):
    """A user takes what there is with `act(i)`, as often as that goes, and holds it until told to end."""
    gets, tells = os.pipe()
    child = Child(lambda: hoard_until_killed(act, tells), uid)
    os.close(tells)
    with os.fdopen(gets) as told:
        return child, int(told.readline() or -1)


def hoard_until_killed(act, tells):
    resource.setrlimit(resource.RLIMIT_NOFILE, (resource.getrlimit(resource.RLIMIT_NOFILE)[1],) * 2)
    held = []
    with contextlib.suppress(OSError):
        while len(held) < 700:
            held.append(act(len(held)))
    os.write(tells, b'%d\n' % len(held))
    time.sleep(60)


def unlinked_but_held(directory, i):
    fd = os.open(f'{directory}/gone{i}', os.O_WRONLY | os.O_CREAT, 0o600)
    os.close(fd)
    fd = os.open(f'{directory}/gone{i}', os.O_PATH)
    os.unlink(f'{directory}/gone{i}')
    return fd


def removed_but_held(directory, i):
    os.mkdir(f'{directory}/gone{i}')
    fd = os.open(f'{directory}/gone{i}', os.O_PATH)
    os.rmdir(f'{directory}/gone{i}')
    return fd


HOARDS = {
    'files': lambda d, i: os.open(f'{d}/files/{i}', os.O_RDONLY),
    'directories': lambda d, i: os.open(d, os.O_RDONLY | os.O_DIRECTORY),
    'unlinked files': unlinked_but_held,
    'removed directories': removed_but_held,
}


def hoarders(*options):
    """No user but root may have more than a quarter of what the daemon may have open."""
    for name, act in HOARDS.items():
        with Mount('--tpm', 'none', *options, prefix=['prlimit', '--nofile=1024:1024']) as mount:
            os.chmod(mount.work, 0o755)
            tree = Tree(mount.backing, mount.path)
            os.makedirs(tree.backing + '/user/files')
            for i in range(700 if name == 'files' else 0):
                write(f'{tree.backing}/user/files/{i}')
            here = mount.path + '/user'
            child, count = hoard(lambda i, act=act, here=here: act(here, i))
            cell(f'a hoard of {name} x a quarter', count == 700 if name == 'directories' else 100 < count <= 256, f'{count}')
            cell(f'a hoard of {name} x descriptors', descriptors(mount) < 900, f'{descriptors(mount)}')
            check_others(f'a hoard of {name}', mount, tree, limit=5)
            child.kill()
            child.ended_within(5)
            again, count = hoard(lambda i, act=act, here=here: act(here, f'{i}' if name != 'files' else i))
            cell(f'a hoard of {name} x its end gives all back', count > 100, f'{count}')
            again.kill()
            again.ended_within(5)


def idle_directories(mount, tree):
    """An open directory goes on where it was, whatever became of its descriptor."""
    path = f'{tree.backing}/others/many'
    os.mkdir(path)
    for i in range(2000):
        write(f'{path}/{i}')
    os.mkdir(f'{tree.backing}/others/gone')
    lists = [os.scandir(f'{mount.path}/others/many') for _ in range(300)]
    some = [{next(one).name for _ in range(10)} for one in lists]
    held = os.open(f'{mount.path}/others/gone', os.O_RDONLY)
    rest = [some[i] | {entry.name for entry in one} for i, one in enumerate(lists)]
    cell('300 directories that are read in turn x each is whole', all(one == {f'{i}' for i in range(2000)} for one in rest))
    os.rmdir(f'{mount.path}/others/gone')
    try:
        left = os.listdir(held)
    except FileNotFoundError:
        left = []
    cell('a removed directory that is open x is empty', left == [], f'{left}')
    os.close(held)


# ---- a file system that does not answer ----

@contextlib.contextmanager
def disk(where, image):
    """A file system of its own, in a loop device."""
    os.makedirs(where)
    with open(image, 'wb') as file:
        file.truncate(64 << 20)
    subprocess.run(['mkfs.ext4', '-q', image], check=True)
    done = subprocess.run(['mount', '-o', 'loop', image, where], check=False)
    try:
        yield done.returncode == 0
    finally:
        subprocess.run(['fsfreeze', '-u', where], stderr=subprocess.DEVNULL, check=False)
        subprocess.run(['umount', '-l', where], stderr=subprocess.DEVNULL, check=False)


STUCK = {  # each in a directory of its own: one that is locked holds up only who uses it
    'create': lambda d: write(d + '/new'),
    'mkdir': lambda d: os.mkdir(d + '/new'),
    'symlink': lambda d: os.symlink('x', d + '/new'),
    'link': lambda d: os.link(d + '/f', d + '/new'),
    'unlink': lambda d: os.unlink(d + '/f'),
    'rename': lambda d: os.rename(d + '/f', d + '/new'),
    'chmod': lambda d: os.chmod(d + '/f', 0o600),
    'truncate': lambda d: os.truncate(d + '/f', 0),
    'setxattr': lambda d: os.setxattr(d + '/f', 'user.x', b'y'),
    'rmdir': lambda d: os.rmdir(d + '/d'),
}


def frozen(*options):
    work = tempfile.mkdtemp(prefix='imafs-frozen-')
    os.chmod(work, 0o755)
    tree_path, slow = work + '/tree', work + '/tree/slow'
    os.makedirs(tree_path)
    with contextlib.ExitStack() as stack:
        stack.callback(shutil.rmtree, work, True)
        if not stack.enter_context(disk(slow, work + '/image')):
            print('not run: a frozen file system: no loop device')
            return
        for name in STUCK:
            for i in range(24):
                os.makedirs(f'{slow}/{name}{i}/d')
                write(f'{slow}/{name}{i}/f')
        write(slow + '/known')
        mount = stack.enter_context(Mount('--tpm', 'none', *options, backing=tree_path))
        os.chmod(mount.work, 0o755)
        tree = Tree(tree_path, mount.path)
        read(mount.path + '/others/known')
        for name, act in STUCK.items():
            for i in range(24):
                os.listdir(f'{mount.path}/slow/{name}{i}')
                os.stat(f'{mount.path}/slow/{name}{i}/f')
            subprocess.run(['fsfreeze', '-f', slow], check=True)
            stuck = [Child(lambda i=i: act(f'{mount.path}/slow/{name}{i}')) for i in range(24)]
            try:
                time.sleep(0.3)
                check_others(f'frozen, {name}', mount, tree, uids=(1000,))
                cell(f'frozen, {name} x reading there', Child(lambda: len(read(mount.path + '/slow/known')) - 1).within(2))
            finally:
                subprocess.run(['fsfreeze', '-u', slow], check=True)
            late = [child.code for child in stuck if not child.within(10)]
            cell(f'frozen, {name} x all go on afterwards', not late, f'{late}')
        # Whoever waits there goes on with an error when the daemon is told to end.
        subprocess.run(['fsfreeze', '-f', slow], check=True)
        stuck = Child(lambda: write(f'{mount.path}/slow/late'))
        idle = Child(lambda: os.listdir(mount.path) and time.sleep(30))
        time.sleep(0.3)
        os.kill(mount.daemon_pid(), signal.SIGTERM)
        cell('frozen x SIGTERM ends the connection', stuck.ended_within(3))
        idle.kill()
        idle.ended_within(2)
        subprocess.run(['fsfreeze', '-u', slow], check=True)


# ---- hashing ----

HUGE = 15 << 40  # of holes: hours


def seconds_of_processor(mount):
    with open(f'/proc/{mount.daemon_pid()}/stat') as stat:
        words = stat.read().rsplit(') ', 1)[1].split()
    return (int(words[11]) + int(words[12])) / os.sysconf('SC_CLK_TCK')


def sparse(path, size):
    write(path, b'', 0o666)
    os.truncate(path, size)


@contextlib.contextmanager
def hashing(mount, tree, count=4):
    """A user has `count` files of holes hashed."""
    n = tree.fresh()
    for i in range(count):
        sparse(f'{tree.backing}/user/huge{n}-{i}', HUGE)
    children = [Child(lambda i=i: read(f'{mount.path}/user/huge{n}-{i}') and 0, NOBODY) for i in range(count)]
    time.sleep(0.5)
    try:
        yield children
    finally:
        for child in children:
            child.kill()
        for child in children:
            child.ended_within(5)


def time_of_opens(mount, names, uid):
    """The slower half does not count: the machine has others to serve."""
    times = []
    for name in names:
        begin = time.monotonic()
        assert Child(lambda: len(read(f'{mount.path}/others/{name}')) - 1024 * 1024, uid).within(20)
        times.append(time.monotonic() - begin)
    return sorted(times)[len(times) // 2]


def long_hashes(mount, tree):
    alone = time_of_opens(mount, [f'big{i}' for i in range(30, 35)], 1000)
    with hashing(mount, tree) as children:
        check_others('huge files being hashed', mount, tree)
        meanwhile = time_of_opens(mount, [f'big{i}' for i in range(35, 40)], 1000)
        cell('huge files being hashed x 1 MiB within 5 times', meanwhile < 5 * alone, f'{alone * 1000:.1f} ms alone, {meanwhile * 1000:.1f} ms')
        second = Child(lambda: read(f'{mount.path}/user/huge{tree.used}-0') and 0, 1000)
        time.sleep(0.2)
        second.kill()
        cell('queued behind a huge file x can be killed', second.ended_within(2))
        for child in children:
            child.kill()
        cell('huge files being hashed x the openers can be killed', all([child.ended_within(2) for child in children]))
        time.sleep(0.2)
        before = seconds_of_processor(mount)
        time.sleep(0.5)
        cell('openers that were killed x nothing is hashed for them', seconds_of_processor(mount) - before < 0.2)


def many_long_hashes(mount, tree):
    """A user has more hashed than he has threads for: the rest of his opens wait for one. Nobody else does."""
    with hashing(mount, tree, 20) as children:
        here, i = mount.path + '/others', tree.fresh()
        children[-1].kill()
        cell('an opener without a thread x can be killed', children[-1].ended_within(2))
        queued = [Child(lambda: len(read(f'{here}/big{i}')) - 1024 * 1024, NOBODY) for _ in range(3)]
        time.sleep(0.3)
        cell('an open without a thread x others open the same file', Child(lambda: len(read(f'{here}/big{i}')) - 1024 * 1024, 1000).within(4))
        for child in queued:
            child.kill()
        cell('openers without a thread x can be killed', all([child.ended_within(2) for child in queued]))


def one_of_two_is_killed(mount, tree):
    """A file is hashed on while anybody waits for it."""
    sparse(tree.backing + '/user/shared', 2 << 30)
    first = Child(lambda: len(read(mount.path + '/user/shared')) - (2 << 30), NOBODY)
    time.sleep(0.2)
    second = Child(lambda: os.close(os.open(mount.path + '/user/shared', os.O_RDONLY)), 1000)
    time.sleep(0.1)
    first.kill()
    cell('the first opener is killed x it ends', first.ended_within(2))
    cell('the first opener is killed x the second gets the file', second.within(60), f'{second.code}')


def signals(mount, tree):
    """A signal that a program handles does not end its open, one that ends the program does."""
    program = ('import ctypes, os, signal, sys\n'
               'signal.signal(signal.SIGALRM, lambda *_: None); signal.siginterrupt(signal.SIGALRM, True); signal.setitimer(signal.ITIMER_REAL, 0.05, 0.05)\n'
               'libc = ctypes.CDLL(None, use_errno=True)\n'  # Python's own open would try again
               'fd = libc.open(sys.argv[1].encode(), os.O_RDONLY)\n'
               'signal.setitimer(signal.ITIMER_REAL, 0)\n'
               'sys.exit(0 if fd >= 0 else ctypes.get_errno())\n')
    sparse(tree.backing + '/user/handled', 2 << 30)
    done = subprocess.run([sys.executable, '-c', program, mount.path + '/user/handled'], check=False, timeout=60)
    cell('a signal that is handled x the open goes on', done.returncode == 0, f'{done.returncode}')
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGQUIT, signal.SIGKILL):
        sparse(f'{tree.backing}/user/ends{number}', HUGE)
        child = subprocess.Popen(['cat', f'{mount.path}/user/ends{number}'], stdout=subprocess.DEVNULL)
        time.sleep(0.3)
        child.send_signal(number)
        try:
            cell(f'{number.name} x ends who waits', child.wait(timeout=2) == -number)
        except subprocess.TimeoutExpired:
            cell(f'{number.name} x ends who waits', False)


def end_while_hashing(how):
    """Whatever is being hashed, the daemon ends."""
    mount = Mount('--tpm', 'none')
    with mount:
        os.chmod(mount.work, 0o755)
        tree = Tree(mount.backing, mount.path)
        pid = mount.daemon_pid()
        with hashing(mount, tree):
            begin = time.monotonic()
            if how == 'SIGTERM':
                os.kill(pid, signal.SIGTERM)
            else:
                subprocess.run(['umount', '-f', '-l', mount.path], check=True)
            gone = seen_within(lambda: os.path.exists(f'/proc/{pid}'), False, 10) is False
            cell(f'{how} while huge files are hashed x the daemon ends', gone and time.monotonic() - begin < 3)


def plain(*options):
    with Mount('--tpm', 'none', *options) as mount:
        os.chmod(mount.work, 0o755)
        tree = Tree(mount.backing, mount.path)
        read(mount.path + '/others/known')
        failing_removals(mount, tree)
        idle_directories(mount, tree)
        foreign_leases(mount, tree)
        long_hashes(mount, tree)
        many_long_hashes(mount, tree)
        one_of_two_is_killed(mount, tree)
        signals(mount, tree)
    hoarders(*options)
    frozen(*options)
    end_while_hashing('SIGTERM')
    end_while_hashing('umount')


def main():
    need_mounts()
    plain()
    print(f'{cells - len(failed)} of {cells} cells pass')
    sys.exit(1 if failed else 0)


if __name__ == '__main__':
    main()
