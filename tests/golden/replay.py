#!/usr/bin/env python3
"""Replays scenarios captured on a kernel with a TPM on an imafs mount, and compares what happens.

    replay.py IMAFS DATA [SCENARIO...]     --list: their names; --accept: print the differences as exceptions

Compared are the transcript (results, errors, log lines, violations, policy read-backs), the log of every bank, as
text and as binary records, and the records of the kernel's audit (audit.txt) with our messages. Differences that a file system cannot avoid are listed in exceptions.txt,
line for line and with their reason; any other difference, and an exception that does not occur, is a failure.
common/comment-*, rule-* and pol-* were not captured: they are rebuilt from what transcripts and audit records show of them.
Needs root: it mounts an ext4 image, and imafs at /mnt in a mount namespace of its own.
"""
import collections
import difflib
import os
import re
import shutil
import struct
import subprocess
import sys
import tempfile
import time

HERE = os.path.dirname(os.path.abspath(__file__))
sys.path.insert(0, os.path.dirname(HERE) + '/e2e')

from interpreter import Interpreter  # noqa: E402
from mounting import in_private_mounts, need_loop_devices, skip_all  # noqa: E402

MOUNT = '/mnt'
CONNECTIONS = '/sys/fs/fuse/connections'
UUID = '11111111-2222-3333-4444-555555555555'
OTHER_UUID = '22222222-3333-4444-5555-666666666666'
BANKS = ('sha1', 'sha256', 'sha384', 'sha512')
DIGEST_SIZE = {'sha1': 20, 'sha256': 32, 'sha384': 48, 'sha512': 64}


def run(*words):
    subprocess.run(words, check=True, stdout=subprocess.DEVNULL)


def options_of(meta):
    """The mount options that stand for a scenario's kernel command line."""
    policy, options = 'builtin:none', []
    for word in meta['cmdline'].split():
        key, _, value = word.partition('=')
        if key == 'ima_template':
            options += ['--template', value]
        elif key == 'ima_template_fmt':
            options += ['--template-fmt', value]
        elif key == 'ima_hash':
            options += ['--hash', value]
        elif key == 'ima_policy':
            policy = 'builtin:' + value
        elif key == 'ima_tcb':
            policy = 'builtin:ima_tcb'
    return options + ['--policy', policy]


def read_meta(path):
    with open(path) as lines:
        return dict(line.rstrip('\n').split(': ', 1) if ': ' in line else (line.strip().rstrip(':'), '') for line in lines)


def make_tree(image, uuid, files, target):
    run('truncate', '-s', '200M', image)
    features = ['-O', 'verity,^has_journal'] if uuid == UUID else ['-O', '^has_journal']
    run('mkfs.ext4', '-q', '-U', uuid, *features, '-d', files, image)
    os.mkdir(target)
    run('mount', '-o', 'loop', image, target)


def records_of(log, bank):
    """The records of a binary log, cut at their lengths."""
    records, at, size = [], 0, DIGEST_SIZE[bank]
    while at < len(log):
        start = at
        at += 4 + size
        name_size, = struct.unpack_from('<I', log, at)
        name = log[at + 4:at + 4 + name_size]
        at += 4 + name_size
        if name == b'ima':
            at += 20 if records_of.legacy_digest == 20 else 16
            name_size, = struct.unpack_from('<I', log, at)
            at += 4 + name_size
        else:
            data_size, = struct.unpack_from('<I', log, at)
            at += 4 + data_size
        records.append(log[start:at])
    return records


records_of.legacy_digest = 20


def comparable(transcript):
    """Lines of a transcript that do not depend on the machine: not on PCR 0 to 9, nor on its kernel's name."""
    dependent = (b' boot_aggregate', b'imah rc', b'cat /proc/version', b' kernel_version ')
    return [line for line in transcript.split(b'\n') if not any(word in line for word in dependent)]


def differences(want, got):
    found = []
    for kind, a, b, c, d in difflib.SequenceMatcher(None, want, got, autojunk=False).get_opcodes():
        if kind != 'equal':
            found += ['-' + line.decode('latin-1') for line in want[a:b]] + ['+' + line.decode('latin-1') for line in got[c:d]]
    return found


def read(path):
    with open(path, 'rb') as source:
        return source.read()


def exceptions():
    """The expected differences of each scenario."""
    found, current = {}, None
    with open(HERE + '/exceptions.txt', encoding='utf-8') as lines:
        for line in lines:
            line = line.rstrip('\n')
            if line.startswith('['):
                current = found.setdefault(line[1:-1], [])
            elif line[:1] in ('+', '-'):
                current.append(line)
    return found


def settle(device):
    """Waits until no request is on its way to the daemon: close(2) does not wait for its RELEASE."""
    for _ in range(1000):
        if int(read(f'{CONNECTIONS}/{os.minor(device)}/waiting')) == 0:
            return
        time.sleep(0.001)


def replay(imafs, data, name, work):
    """The differences between a scenario and what imafs makes of it."""
    scenario = f'{data}/{name}'
    make_tree(work + '/image', UUID, data + '/files/t1', work + '/tree')
    options = options_of(read_meta(scenario + '/meta'))
    run(imafs, MOUNT, '--backing', work + '/tree', '--path-prefix', MOUNT, '--state', work + '/state', '--log-file',
        work + '/messages', '--log-level', 'debug', *options)
    found = []
    try:
        def rewrite(word):
            for old, new in ((b'/scn/meta', scenario.encode() + b'/meta'), (b'/sys/kernel/security/integrity/ima', b'/mnt/.ima'), (b'/sys/kernel/security/ima', b'/mnt/.ima'),
                             (b'/scn/', data.encode() + b'/common/'), (b'/scn\n', data.encode() + b'/common\n')):
                word = word.replace(old, new)
            return word

        with open(work + '/transcript', 'wb') as out:
            device = os.stat(MOUNT).st_dev
            interpreter = Interpreter(MOUNT, MOUNT + '/.ima', out, rewrite, lambda: settle(device))
            os.umask(0o022)
            os.chdir(MOUNT)
            interpreter.run(scenario + '/ops')
            os.chdir('/')
        found += differences(comparable(read(scenario + '/transcript.txt')), comparable(read(work + '/transcript').replace(data.encode() + b'/common/', b'/scn/')))
        found += compare_logs(scenario)
        verdict = subprocess.run([imafs, 'verify', MOUNT], stdout=subprocess.PIPE, text=True)
        if verdict.returncode != 0:
            found.append('+verify: ' + verdict.stdout.partition('\n')[0])
        return found
    finally:
        os.chdir('/')
        subprocess.run(['umount', MOUNT])
        for _ in range(50):
            if subprocess.run(['umount', work + '/tree'], stderr=subprocess.DEVNULL).returncode == 0:
                break
            time.sleep(0.1)
        # The daemon is gone, and its messages are all there.
        found.extend(differences(read(scenario + '/audit.txt').split(b'\n')[:-1], audit_records(work + '/messages', data)))


def audit_records(messages, data):
    """The operator messages in the kernel's audit form, as audit.txt has them: without process, command, device and inode."""
    records = [line.split(b'integrity: ', 1)[1] for line in read(messages).split(b'\n') if b'integrity: ' in line]
    records = [record for record in records if not record.startswith(b'policy update refused: ')]  # why, in words: ours
    for pattern, rest in ((rb'\bpid=\d+ uid=(\d+) auid=\d+ ses=\d+ ', rb'uid=\1 '), (rb' (comm|subj)=("[^"]*"|[^ "]+)', b''),
                          (rb' dev="[^"]*" ino=\d+', b' dev= ino=')):
        records = [re.sub(pattern, rest, record) for record in records]
    return [record.replace(data.encode() + b'/common/', b'/scn/') for record in records]


OUR_OWN = re.compile(rb' (start|policy|kernel_version) ')  # critical data that depends on the machine, or that a kernel has not


def without_digest(bank, records):
    """Records of a binary log without what depends on the bank."""
    return [record[:4] + record[4 + DIGEST_SIZE[bank]:] for record in records]


def compare_logs(scenario):
    """The files of every bank: ours agree with each other, and with the kernel's wherever sha1's text does.

    Where the text differs the transcript does too, and is listed there with its reason. boot_aggregate is left
    out: it is a digest of this machine's PCRs 0 to 9.
    """
    def logs(source):
        """{bank: (lines, records)} without boot_aggregate and what else differs from one machine to the next."""
        found = {}
        for bank in BANKS:
            records = records_of(read(f'{source}/binary_runtime_measurements_{bank}'), bank)
            text = read(f'{source}/ascii_runtime_measurements_{bank}')
            lines = lines_of(text, records, bank)
            kept = [i for i in range(1, len(records)) if not OUR_OWN.search(lines[i] + b' ')]
            found[bank] = ([lines[i] for i in kept], [records[i] for i in kept])
        return found

    try:
        kernel, ours = logs(scenario), logs(MOUNT + '/.ima')
    except ValueError as error:
        return [f'+logs: {error}']
    found = []
    for name, log in (('kernel', kernel), ('imafs', ours)):
        for bank in BANKS:
            if without_digest(bank, log[bank][1]) != without_digest('sha1', log['sha1'][1]):
                found.append(f'+{name}: {bank} holds other entries than sha1')
    if found:
        return found
    for name, want in (('runtime_measurements_count', len(records_of(read(MOUNT + '/.ima/binary_runtime_measurements_sha1'), 'sha1'))),
                       ('violations', sum(record[4:24] == bytes(20) for record in ours['sha1'][1]))):
        if int(read(f'{MOUNT}/.ima/{name}')) != want:
            found.append(f'+{name} differs from the log')
    same = difflib.SequenceMatcher(None, kernel['sha1'][1], ours['sha1'][1], autojunk=False).get_matching_blocks()
    for bank in BANKS:
        for form in (0, 1):
            if any(kernel[bank][form][a:a + n] != ours[bank][form][b:b + n] for a, b, n in same):
                found.append(f'+{bank}: entries that are equal in sha1 differ')
    return found


def lines_of(text, records, bank):
    """The text cut into one piece for each record: a kernel's names may hold newlines."""
    lines, at = [], 0
    for number, record in enumerate(records):
        head = b'%2d %s ' % (struct.unpack_from('<I', record)[0], record[4:4 + DIGEST_SIZE[bank]].hex().encode())
        if not text.startswith(head, at):
            raise ValueError(f'{bank}: record {number} and its line disagree')
        end = len(text)
        if number + 1 < len(records):
            after = records[number + 1]
            mark = b'\n%2d %s ' % (struct.unpack_from('<I', after)[0], after[4:4 + DIGEST_SIZE[bank]].hex().encode())
            end = text.find(mark, at) + 1
            if end == 0:
                raise ValueError(f'{bank}: record {number + 1} has no line')
        lines.append(text[at:end])
        at = end
    if at != len(text):
        raise ValueError(f'{bank}: text without a record')
    return lines


def main(arguments):
    accept = '--accept' in arguments
    arguments = [word for word in arguments if word != '--accept']
    imafs, data = os.path.abspath(arguments[0]), os.path.abspath(arguments[1])
    names = arguments[2:] or sorted(name for name in os.listdir(data) if os.path.exists(f'{data}/{name}/ops'))
    if names == ['--list']:
        print('\n'.join(sorted(name for name in os.listdir(data) if os.path.exists(f'{data}/{name}/ops'))))
        return 0
    if not os.path.isdir(MOUNT):
        skip_all(f'there is no {MOUNT}')
    in_private_mounts()
    need_loop_devices()
    # All of this is for this mount namespace only.
    if not os.path.ismount(CONNECTIONS):
        run('mount', '-t', 'fusectl', 'fusectl', CONNECTIONS)
    run('mount', '-t', 'tmpfs', 'tmpfs', MOUNT)  # whatever this machine has there
    expected, failed = exceptions(), 0
    for name in names:
        work = tempfile.mkdtemp(prefix='imafs-golden-')
        try:
            found = replay(imafs, data, name, work)
        finally:
            subprocess.run(['umount', work + '/tree'], stderr=subprocess.DEVNULL)
            shutil.rmtree(work, ignore_errors=True)
        if accept and found:
            print(f'[{name}]\n' + '\n'.join(found))
            continue
        listed = expected.get(name, [])
        unexpected = list((collections.Counter(found) - collections.Counter(listed)).elements())
        absent = list((collections.Counter(listed) - collections.Counter(found)).elements())
        print(f'{name}: ' + ('equal' if not found else f'{len(found)} lines differ, as listed') if not unexpected and not absent
              else f'{name}: FAILED')
        for line in unexpected[:20]:
            print('  unexpected: ' + line)
        for line in absent[:20]:
            print('  expected and not seen: ' + line)
        failed += bool(unexpected or absent)
    return 1 if failed else 0


if __name__ == '__main__':
    sys.exit(main(sys.argv[1:]))
