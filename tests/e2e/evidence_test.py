#!/usr/bin/env python3
"""Evidence as whoever hands it over could change it: what is changed x the point that has to say so x the exit status.

The evidence is genuine: quotes of mounts, before and after a trim, with rules for a second PCR, with violations. On each row those
judges that can read it are asked too: openssl, tpm2_checkquote, evmctl, and a parser written to Keylime's rules.
"""
import hashlib
import json
import os
import re
import shutil
import struct
import subprocess
import tempfile
import unittest

from mounting import IMAFS, Mount, run_tests
from tools_test import fill, tool

NONCE = '00112233445566778899aabbccddeeff'
SIZES = {'sha1': 20, 'sha256': 32, 'sha384': 48, 'sha512': 64}


class Record:
    """An entry of a binary log."""

    def __init__(self, pcr, digest, template, fields):
        self.pcr, self.digest, self.template, self.fields = pcr, digest, template, fields

    @classmethod
    def file(cls, name, content=b'x', bank='sha256', pcr=10, template=b'ima-ng'):
        record = cls(pcr, b'', template, [b'sha256:\0' + hashlib.sha256(content).digest(), name + b'\0'])
        record.seal(bank)
        return record

    def data(self):
        return b''.join(struct.pack('<I', len(field)) + field for field in self.fields)

    def seal(self, bank='sha256'):
        """The template digest that fits the data."""
        self.digest = hashlib.new(bank, self.data()).digest()

    def name(self):
        return self.fields[1].rstrip(b'\0')

    def is_violation(self):
        return not any(self.digest)

    def extends(self, bank):
        return b'\xff' * SIZES[bank] if self.is_violation() else hashlib.new(bank, self.data()).digest()

    def bytes(self, digest=None):
        data = self.data()
        return b''.join((struct.pack('<I', self.pcr), self.digest if digest is None else digest, struct.pack('<I', len(self.template)), self.template,
                         struct.pack('<I', len(data)), data))


def parse(log, bank='sha256'):
    records, at = [], 0

    def take(size):
        nonlocal at
        at += size
        if at > len(log):
            raise ValueError('cut short')
        return log[at - size:at]

    def number():
        return struct.unpack('<I', take(4))[0]

    while at < len(log):
        pcr, digest = number(), take(SIZES[bank])
        template = take(number())
        end = number() + at
        fields = []
        while at < end:
            fields.append(take(number()))
        if at != end or len(fields) < 2:
            raise ValueError('malformed')
        records.append(Record(pcr, digest, template, fields))
    return records


def fold(records, bank='sha256', start=None):
    """{pcr: value} after these entries."""
    values = dict(start or {})
    for record in records:
        before = values.get(record.pcr, bytes(SIZES[bank]))
        values[record.pcr] = hashlib.new(bank, before + record.extends(bank)).digest()
    return values


class Evidence:
    """A copy of an evidence directory to change."""

    def __init__(self, source, path, bank='sha256'):
        shutil.copytree(source, path)
        self.path, self.bank = path, bank

    def file(self, name):
        return os.path.join(self.path, name)

    def read(self, name):
        with open(self.file(name), 'rb') as file:
            return file.read()

    def write(self, name, data):
        with open(self.file(name), 'wb') as file:
            file.write(data)

    def edit(self, name, function):
        self.write(name, function(self.read(name)))

    def flip(self, name, position):
        data = bytearray(self.read(name))
        data[position] ^= 1
        self.write(name, bytes(data))

    def records(self):
        return parse(self.read('log'), self.bank)

    def log(self, records):
        self.write('log', b''.join(record.bytes() for record in records))

    def pcrs(self):
        return {int(pcr): bytes.fromhex(value) for bank, pcr, value in re.findall(r'(\w+):(\d+): ([0-9a-f]+)', self.read('pcrs').decode())}

    def set_pcr(self, pcr, value):
        """In both forms, so that all judges see the same."""
        before = self.pcrs()[pcr]
        self.edit('pcrs', lambda text: re.sub(rb'(:%d: )[0-9a-f]+' % pcr, rb'\g<1>' + value.hex().encode(), text))
        raw = self.read('pcrs.bin')
        lists = raw[132 + 4:]
        assert before in lists
        index = sorted(self.pcrs()).index(pcr)
        at = 136 + index // 8 * 532 + 4 + index % 8 * 66 + 2
        assert raw[at:at + len(before)] == before, 'the layout of pcrs.bin'
        self.write('pcrs.bin', raw[:at] + value + raw[at + len(value):])

    def about(self, **members):
        self.edit('about.json', lambda text: json.dumps({**json.loads(text), **members}).encode())


def without(name):
    return lambda e: e.log([r for r in e.records() if r.name() != name])


def head_cut(count, claim=True):
    """The first entries are left out, and the evidence says what the PCR was after them."""
    def change(e):
        records = e.records()
        values = fold(records[:count])
        e.log(records[count:])
        if claim:
            e.about(base=''.join(f'sha256:{pcr}: {value.hex()}\n' for pcr, value in values.items()), entries=len(records) - count)
    return change


def nth(index, change, seal=True):
    def edit(e):
        records = e.records()
        change(records[index])
        if seal:
            records[index].seal(e.bank)
        e.log(records)
    return edit


def of_violation(change):
    def edit(e):
        records = e.records()
        change(next(r for r in records if r.is_violation()))
        e.log(records)
    return edit


def of_signed(template):
    """Another template for all that has a signature: not a byte of what the PCR binds changes."""
    def edit(e):
        records = e.records()
        for record in records:
            if len(record.fields) == 3 and record.fields[2] and record.template == b'ima-sig':
                record.template = template
        assert any(record.template == template for record in records)
        e.log(records)
    return edit


def renamed(name):
    def change(record):
        record.fields[1] = name + b'\0'
    return change


def as_buffer(record):
    record.template = b'ima-buf'
    record.fields = [record.fields[0], record.fields[1], b'data']


def of_template(template):
    """Another template, and not a byte of what the PCR binds."""
    def change(record):
        record.template = template
    return change


def content(data):
    def change(record):
        record.fields[0] = b'sha256:\0' + hashlib.sha256(data).digest()
    return change


def replaced(name, what):
    def change(e):
        os.unlink(e.file(name))
        what(e.file(name))
    return change


def appended(*records):
    return lambda e: e.log(e.records() + list(records))


def other_key(e):
    """The quote signed once more by a key in software, which then lies beside it."""
    run = lambda *words: subprocess.run(words, cwd=e.path, check=True, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL).stdout
    run('openssl', 'genpkey', '-algorithm', 'EC', '-pkeyopt', 'ec_paramgen_curve:P-256', '-out', 'key')
    run('openssl', 'pkey', '-in', 'key', '-pubout', '-out', 'ak.pem')
    der = run('openssl', 'dgst', '-sha256', '-sign', 'key', 'quote.msg')
    r, s = integers(der)
    e.write('quote.sig', struct.pack('>HH', 0x18, 0x0b) + struct.pack('>H', len(r)) + r + struct.pack('>H', len(s)) + s)
    point = run('openssl', 'pkey', '-pubin', '-in', 'ak.pem', '-outform', 'DER')[-64:]
    head = e.read('ak.pub')[:-68]
    e.write('ak.pub', head + struct.pack('>H', 32) + point[:32] + struct.pack('>H', 32) + point[32:])


def integers(der):
    """The two numbers of an ECDSA signature in DER."""
    at = 2
    for _ in range(2):
        size = der[at + 1]
        yield der[at + 2:at + 2 + size].lstrip(b'\0').rjust(32, b'\0')
        at += 2 + size


def attributes(clear=0, also=0):
    def change(e):
        data = bytearray(e.read('ak.pub'))
        bits, = struct.unpack_from('>I', data, 6)
        struct.pack_into('>I', data, 6, bits & ~clear | also)
        e.write('ak.pub', bytes(data))
    return change


RESTRICTED, FIXED_TPM, DECRYPT, MADE_THERE, UNLOCKABLE = 1 << 16, 1 << 1, 1 << 17, 1 << 5, 1 << 10
VERIFIED, MISMATCH, INCOMPLETE = 0, 1, 2
ALLOW, NO_AK, NO_NONCE = 'allow', 'no ak', 'no nonce'


def nothing(_):
    pass


# What is changed; in which evidence; how; with which options; exit status; points that say FAIL, points that say ?.
ROWS = [
    ('nothing', 'plain', nothing, [ALLOW], VERIFIED, '', ''),
    ('nothing, the key by TPM2B_PUBLIC', 'plain', nothing, ['--ak', 'AK.pub'], VERIFIED, '', ''),
    ('nothing, the key by its name', 'plain', nothing, ['--ak', 'AK.name'], VERIFIED, '', ''),
    ('nothing, the key as imafs ak prints it', 'plain', nothing, ['--ak', 'AK.text'], VERIFIED, '', ''),
    ('nothing, of a trimmed log', 'trimmed', nothing, [ALLOW], VERIFIED, '', ''),
    ('nothing, of two PCRs', 'two', nothing, [ALLOW], VERIFIED, '', ''),
    ('nothing, of two PCRs that are demanded', 'two', nothing, ['--pcr', '10', '--pcr', '11'], VERIFIED, '', ''),
    ('nothing, of bank sha1', 'sha1', nothing, [], INCOMPLETE, '', 'boot_aggregate'),
    ('nothing, of bank sha384', 'sha384', nothing, [], INCOMPLETE, '', 'boot_aggregate'),
    ('nothing, with a violation', 'violated', nothing, [], VERIFIED, '', ''),
    ('nothing, with a violation, compared', 'violated', nothing, [ALLOW], MISMATCH, 'files', ''),
    # what is not asked for is not verified
    ('no --ak', 'plain', nothing, [NO_AK], INCOMPLETE, '', 'key'),
    ('no --nonce', 'plain', nothing, [NO_NONCE], INCOMPLETE, '', 'nonce'),
    ('neither', 'plain', nothing, [NO_AK, NO_NONCE, ALLOW], INCOMPLETE, '', 'key nonce'),
    ('another nonce', 'plain', nothing, ['--nonce', '00' * 16], MISMATCH, 'nonce', ''),
    ('the beginning of the nonce', 'plain', nothing, ['--nonce', NONCE[:-2]], MISMATCH, 'nonce', ''),
    ('a PCR that is demanded and not quoted', 'plain', nothing, ['--pcr', '11'], INCOMPLETE, '', 'pcr log'),
    ('a PCR that is demanded and has no entry', 'plain', nothing, ['--pcr', '10', '--pcr', '9'], INCOMPLETE, '', 'pcr log'),
    # the beginning
    ('an evil entry and all before it', 'plain', head_cut(4), [ALLOW], MISMATCH, 'log boot_aggregate', 'files'),
    ('the first entry', 'plain', head_cut(1), [ALLOW], MISMATCH, 'log boot_aggregate', 'files'),
    ('all entries', 'plain', lambda e: head_cut(len(e.records()))(e), [], MISMATCH, 'log', 'boot_aggregate'),
    ('the beginning, without a word', 'plain', head_cut(4, claim=False), [], MISMATCH, 'log boot_aggregate', ''),
    ('the archived part of a trimmed log', 'trimmed', head_cut(5), [ALLOW], MISMATCH, 'log boot_aggregate', 'files'),
    ('a part of the archived part', 'trimmed', lambda e: e.log(e.records()[:1] + e.records()[3:]), [], MISMATCH, 'log', ''),
    ('the archives, before the quote was made', 'headless', nothing, [], MISMATCH, 'log boot_aggregate', ''),
    ('the archives, and it says so', 'headless', lambda e: e.about(base='sha256:10: ' + '00' * 32), [], MISMATCH, 'log boot_aggregate', ''),
    ('about.json says another PCR', 'plain', lambda e: e.about(pcr=9), [], VERIFIED, '', ''),
    ('about.json says another number', 'plain', lambda e: e.about(entries=1), [], VERIFIED, '', ''),
    ('about.json says another bank', 'plain', lambda e: e.about(bank='sha1'), [], VERIFIED, '', ''),
    ('about.json is gone', 'plain', lambda e: os.unlink(e.file('about.json')), [], VERIFIED, '', ''),
    ('about.json is a FIFO', 'plain', replaced('about.json', os.mkfifo), [], VERIFIED, '', ''),
    # a base that the verifier kept
    ('the rest after a base', 'headless', nothing, ['--base', 'BASE.headless'], VERIFIED, '', ''),
    ('the rest after a base, compared, the base was not', 'headless', nothing, ['--base', 'BASE.headless', ALLOW], INCOMPLETE, '', 'files'),
    ('the whole log after a base', 'later', nothing, ['--base', 'BASE.plain'], VERIFIED, '', ''),
    ('the whole log after a base, changed before it', 'later', nth(3, content(b'other')), ['--base', 'BASE.plain'], MISMATCH, 'log', ''),
    ('the whole log after a base, cut', 'later', lambda e: e.log(e.records()[:-1]), ['--base', 'BASE.plain'], MISMATCH, 'log', ''),
    ('an earlier quote after a later base', 'plain', nothing, ['--base', 'BASE.later'], MISMATCH, 'log', ''),
    ('a base of another key', 'later', nothing, ['--base', 'BASE.two'], MISMATCH, 'base log', 'boot_aggregate'),
    ('a base of another reset', 'later', nothing, ['--base', 'BASE.reset'], MISMATCH, 'base', ''),
    ('a base of another bank', 'sha384', nothing, ['--base', 'BASE.plain'], MISMATCH, 'base', 'boot_aggregate'),
    # entries
    ('an entry in the middle', 'plain', without(b'/evil'), [ALLOW], MISMATCH, 'log', 'files'),
    ('the last entry', 'plain', lambda e: e.log(e.records()[:-1]), [], MISMATCH, 'log', ''),
    ('two entries change places', 'plain', lambda e: e.log((lambda r: r[:3] + [r[4], r[3]] + r[5:])(e.records())), [], MISMATCH, 'log', ''),
    ('an entry twice', 'plain', lambda e: e.log(e.records() + e.records()[-1:]), [], MISMATCH, 'log', ''),
    ('an entry more', 'plain', appended(Record.file(b'/more')), [ALLOW], MISMATCH, 'log', 'files'),
    ('a digest, and the template digest with it', 'plain', nth(3, content(b'clean')), [ALLOW], MISMATCH, 'log', 'files'),
    ('a digest alone', 'plain', nth(3, content(b'clean'), seal=False), [], MISMATCH, 'log', ''),
    ('a name', 'plain', nth(3, renamed(b'/good')), [ALLOW], MISMATCH, 'log', 'files'),
    ('a template digest alone', 'plain', nth(3, lambda r: setattr(r, 'digest', b'\1' * 32), seal=False), [], MISMATCH, 'log', ''),
    ('the template of an entry', 'plain', nth(3, as_buffer), [ALLOW], MISMATCH, 'log', 'files'),
    ('the template of an entry alone: its name is data', 'plain', nth(3, of_template(b'd-ng|buf'), seal=False), [ALLOW], MISMATCH, 'files', ''),
    ('the template of an entry alone: its digest is data', 'plain', nth(3, of_template(b'buf|n-ng'), seal=False), [ALLOW], MISMATCH, 'files', ''),
    ('the template of an entry alone: it has no digest', 'plain', nth(3, of_template(b'sig|n-ng'), seal=False), [ALLOW], MISMATCH, 'files', ''),
    ('the template of an entry alone: another type of digest', 'plain', nth(3, of_template(b'ima-ngv2'), seal=False), [ALLOW], MISMATCH, 'files', ''),
    ('the template of boot_aggregate alone', 'plain', nth(0, of_template(b'sig|n-ng'), seal=False), [], MISMATCH, 'boot_aggregate', ''),
    ('nothing, of signed files', 'signed', nothing, [], VERIFIED, '', ''),
    ('nothing, of signed files, compared', 'signed', nothing, [ALLOW], MISMATCH, 'files', ''),
    ('a signature is data', 'signed', of_signed(b'ima-buf'), [ALLOW], MISMATCH, 'files', ''),
    ('a signature is the digest', 'signed', of_signed(b'sig|n-ng|d-ng'), [ALLOW], MISMATCH, 'files', ''),
    ('a signature is the digest, and the digest another one', 'signed', of_signed(b'd-modsig|n-ng|d-ng'), [ALLOW], MISMATCH, 'files', ''),
    ('a signature is a second digest', 'signed', of_signed(b'd-ng|n-ng|d-ng'), [ALLOW], MISMATCH, 'files', ''),
    ('an entry becomes a violation', 'plain', nth(3, lambda r: setattr(r, 'digest', bytes(32)), seal=False), [ALLOW], MISMATCH, 'log', 'files'),
    ('the PCR of an entry', 'plain', nth(3, lambda r: setattr(r, 'pcr', 11)), [ALLOW], MISMATCH, 'log', 'files'),
    ('an entry of a PCR that no TPM has', 'plain', appended(Record.file(b'/f', pcr=30)), [], INCOMPLETE, '', 'log pcr'),
    ('an entry of a PCR that is not quoted', 'plain', appended(Record.file(b'/f', pcr=12)), [], INCOMPLETE, '', 'log pcr'),
    ('an entry of a PCR of the firmware', 'plain', appended(Record.file(b'/f', pcr=7)), [], MISMATCH, 'log', ''),
    ('the log of another mount', 'plain', lambda e: shutil.copy(e.path + '/../two/log', e.file('log')), [], MISMATCH, 'log', ''),
    ('the entries of the second PCR', 'two', lambda e: e.log([r for r in e.records() if r.pcr != 11]), [ALLOW], INCOMPLETE, '', 'pcr'),
    ('the entries of the first PCR', 'two', lambda e: e.log([r for r in e.records() if r.pcr == 11]), [], MISMATCH, 'log boot_aggregate', ''),
    ('one entry of the second PCR', 'two', without(b'/second/evil'), [ALLOW], MISMATCH, 'log', 'files'),
    ('the PCR of all entries', 'two', lambda e: e.log([Record(10, r.digest, r.template, r.fields) for r in e.records()]), [], MISMATCH, 'log', 'pcr'),
    # boot_aggregate
    ('boot_aggregate', 'plain', nth(0, content(b'boot')), [], MISMATCH, 'log boot_aggregate', ''),
    ('boot_aggregate is zeros', 'plain', nth(0, lambda r: r.fields.__setitem__(0, b'sha256:\0' + bytes(32))), [], MISMATCH, 'log boot_aggregate', ''),
    ('boot_aggregate of another bank', 'plain', nth(0, lambda r: r.fields.__setitem__(0, b'sha1:\0' + bytes(20))), [], MISMATCH, 'log', 'boot_aggregate'),
    ('boot_aggregate has another name', 'plain', nth(0, renamed(b'/boot_aggregate')), [], MISMATCH, 'log boot_aggregate', ''),
    ('boot_aggregate is a violation', 'plain', nth(0, lambda r: setattr(r, 'digest', bytes(32)), seal=False), [], MISMATCH, 'log boot_aggregate', ''),
    ('a file called boot_aggregate', 'named', nothing, [ALLOW], MISMATCH, 'files', ''),
    # violations: no PCR binds what they say
    ('a violation is called boot_aggregate', 'violated', of_violation(renamed(b'boot_aggregate')), [ALLOW], MISMATCH, 'files', ''),
    ('a violation becomes data', 'violated', of_violation(as_buffer), [ALLOW], MISMATCH, 'files', ''),
    ('a violation has the name of an excluded file', 'violated', of_violation(renamed(b'/excluded')), [ALLOW], MISMATCH, 'files', ''),
    ('a violation has no name', 'violated', of_violation(renamed(b'')), [ALLOW], MISMATCH, 'files', ''),
    ('a violation is left out', 'violated', lambda e: e.log([r for r in e.records() if not r.is_violation()]), [ALLOW], MISMATCH, 'log', 'files'),
    ('a violation is another PCR\'s', 'violated', of_violation(lambda r: setattr(r, 'pcr', 12)), [ALLOW], MISMATCH, 'log', 'files'),
    # the quote, its signature, its values, its key
    ('a bit of the signature', 'plain', lambda e: e.flip('quote.sig', 20), [], MISMATCH, 'signature', ''),
    ('a byte more behind the signature', 'plain', lambda e: e.edit('quote.sig', lambda d: d + b'\0'), [], MISMATCH, 'signature', ''),
    ('no signature', 'plain', lambda e: e.write('quote.sig', b''), [], MISMATCH, 'signature', ''),
    ('a bit of the quote\'s clock', 'plain', lambda e: e.flip('quote.msg', -40 - 12), [], MISMATCH, 'signature', None),
    ('a byte more behind the quote', 'plain', lambda e: e.edit('quote.msg', lambda d: d + b'\0'), [], MISMATCH, 'signature quote', ''),
    ('no quote', 'plain', lambda e: e.write('quote.msg', b''), [], MISMATCH, 'signature quote', ''),
    ('the quote of another mount', 'plain', lambda e: shutil.copy(e.path + '/../two/quote.msg', e.file('quote.msg')), [], MISMATCH, None, None),
    ('signed by another key', 'plain', other_key, [], MISMATCH, 'key signature', ''),
    ('signed by another key, nobody asks', 'plain', other_key, [NO_AK], INCOMPLETE, '', 'key'),
    ('signed by another key, by name', 'plain', other_key, ['--ak', 'AK.name'], MISMATCH, 'key signature', ''),
    ('the key is not restricted', 'plain', attributes(clear=RESTRICTED), [], MISMATCH, 'key', ''),
    ('the key is not fixed to its TPM', 'plain', attributes(clear=FIXED_TPM), [], MISMATCH, 'key', ''),
    ('the key was not made in its TPM', 'plain', attributes(clear=MADE_THERE), [], MISMATCH, 'key', ''),
    ('the key decrypts, too', 'plain', attributes(also=DECRYPT), [], MISMATCH, 'key', ''),
    ('the key\'s attributes, known by name', 'plain', attributes(clear=1 << 6), ['--ak', 'AK.name'], MISMATCH, 'key signature', ''),
    ('the key may be locked after wrong tries', 'plain', attributes(clear=UNLOCKABLE), [], VERIFIED, '', ''),
    ('ak.pub is gone', 'plain', lambda e: os.unlink(e.file('ak.pub')), [], INCOMPLETE, '', 'key'),
    ('ak.pub is gone, the verifier has it', 'plain', lambda e: os.unlink(e.file('ak.pub')), ['--ak', 'AK.pub'], VERIFIED, '', ''),
    ('ak.pub is cut short', 'plain', lambda e: e.edit('ak.pub', lambda d: d[:-1]), [], MISMATCH, 'key', ''),
    ('ak.pem is rubbish', 'plain', lambda e: e.write('ak.pem', b'rubbish'), [], VERIFIED, '', ''),
    ('the value of PCR 0', 'plain', lambda e: e.set_pcr(0, b'\1' * 32), [], MISMATCH, 'pcrs boot_aggregate', ''),
    ('the value of PCR 10', 'plain', lambda e: e.set_pcr(10, b'\1' * 32), [], MISMATCH, 'pcrs log', ''),
    ('PCR 10 and the log alike', 'plain', lambda e: (without(b'/evil')(e), e.set_pcr(10, fold(e.records())[10])), [ALLOW], MISMATCH, 'pcrs', 'files'),
    ('a value is left out', 'plain', lambda e: e.edit('pcrs', lambda t: re.sub(rb'sha256:3: .*\n', b'', t)), [], MISMATCH, 'pcrs', 'boot_aggregate'),
    ('the values are rubbish', 'plain', lambda e: e.write('pcrs', b'rubbish\n'), [], MISMATCH, 'pcrs', None),
    ('the values are of another bank', 'plain', lambda e: e.edit('pcrs', lambda t: t.replace(b'sha256:', b'sm3:')), [], MISMATCH, 'pcrs', None),
    # what is no evidence at all
    ('the log is cut in an entry', 'plain', lambda e: e.edit('log', lambda d: d[:-3]), [], MISMATCH, 'log', ''),
    ('the log is rubbish', 'plain', lambda e: e.write('log', b'\xff' * 100), [], MISMATCH, 'log', ''),
    ('a length of 4 GiB', 'plain', lambda e: e.edit('log', lambda d: d[:36] + b'\xff\xff\xff\xff' + d[40:]), [], MISMATCH, 'log', ''),
    ('a name of 100,000 bytes', 'plain', appended(Record.file(b'/' + b'a' * 100000)), [ALLOW], MISMATCH, 'log', ''),
    ('a name that draws on the terminal', 'plain', appended(Record.file(b'/x\x1b[2Kverified: all is well\n')), [ALLOW], MISMATCH, 'log', 'files'),
    ('the log is a FIFO', 'plain', replaced('log', os.mkfifo), [], INCOMPLETE, None, None),
    ('the values are a FIFO', 'plain', replaced('pcrs', os.mkfifo), [], INCOMPLETE, None, None),
    ('the key is a FIFO', 'plain', replaced('ak.pub', os.mkfifo), [], INCOMPLETE, None, None),
    ('the log is a link', 'plain', replaced('log', lambda path: os.symlink('/dev/zero', path)), [], INCOMPLETE, None, None),
    ('the log is a directory', 'plain', replaced('log', os.mkdir), [], INCOMPLETE, None, None),
    ('the log is too large', 'plain', replaced('log', lambda path: os.truncate(os.open(path, os.O_CREAT | os.O_WRONLY), 5 << 30)), [], INCOMPLETE, None, None),
    ('the quote is gone', 'plain', lambda e: os.unlink(e.file('quote.msg')), [], INCOMPLETE, None, None),
]


class Table(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        cls.work = tempfile.mkdtemp(prefix='imafs-e2e-')
        cls.addClassCleanup(shutil.rmtree, cls.work, ignore_errors=True)
        policies = {cls.of_two_pcrs: 'measure func=FILE_CHECK mask=MAY_READ path=/second/** pcr=11\nmeasure func=FILE_CHECK mask=MAY_READ\n',
                    cls.of_signed_files: 'measure func=FILE_CHECK mask=MAY_READ template=ima-sig\n'}
        for make in (cls.of_one_mount, cls.of_two_pcrs, cls.of_a_name, cls.of_signed_files):
            with Mount() as mount:
                if make in policies:
                    mount.stop()
                    with open(mount.work + '/policy', 'w') as file:
                        file.write(policies[make])
                    mount.options += ['--policy', mount.work + '/policy']
                    mount.start()
                make(mount)
        good = json.loads(tool('manifest', cls.work + '/tree', '--format', 'keylime', '--exclude', '/excluded'))
        # The evil files are allowed as they are: what is changed has to be found by other means.
        with open(cls.work + '/allow', 'w') as file:
            good['digests'].update({'/evil': [hashlib.sha256(b'evil').hexdigest()], '/second/evil': [hashlib.sha256(b'evil').hexdigest()]})
            json.dump(good, file)

    @classmethod
    def quote(cls, mount, name, *words):
        tool('quote', mount.path, '--nonce', NONCE, '-o', f'{cls.work}/{name}', *words)

    @classmethod
    def keep(cls, mount, name):
        text = tool('ak', mount.path, '-o', f'{cls.work}/{name}.pub')
        for suffix, part in (('text', text), ('name', text.split('\n')[0]), ('pem', text[text.index('-----'):])):
            with open(f'{cls.work}/{name}.{suffix}', 'w') as file:
                file.write(part)

    @classmethod
    def save_base(cls, name, ak='AK'):
        tool('verify', '--quote', f'{cls.work}/{name}', '--nonce', NONCE, '--ak', f'{cls.work}/{ak}.pem', '--save-base', f'{cls.work}/BASE.{name}')

    @classmethod
    def of_one_mount(cls, mount):
        cls.keep(mount, 'AK')
        for name in ('evil', 'good', 'excluded'):
            with open(f'{mount.backing}/{name}', 'w') as file:
                file.write(name)
            with open(f'{mount.path}/{name}') as file:
                file.read()
        fill(mount, 3)
        cls.quote(mount, 'plain')
        cls.quote(mount, 'sha1', '--bank', 'sha1')
        cls.quote(mount, 'sha384', '--bank', 'sha384')
        cls.save_base('plain')
        fill(mount, 2, first=3)
        cls.quote(mount, 'later')
        cls.save_base('later')
        with open(f'{cls.work}/BASE.later') as file, open(f'{cls.work}/BASE.reset', 'w') as other:
            json.dump({**json.load(file), 'reset_count': 1}, other)
        tool('log', 'trim', mount.path, '--keep', '3')
        cls.quote(mount, 'whole')
        cls.save_base('whole')
        tool('log', 'trim', mount.path, '--keep', '0')
        fill(mount, 2, first=5)
        cls.quote(mount, 'trimmed')
        os.rename(mount.state + '/archive', mount.state + '/moved')
        cls.quote(mount, 'headless')
        os.rename(mount.state + '/moved', mount.state + '/archive')
        shutil.copy(f'{cls.work}/BASE.whole', f'{cls.work}/BASE.headless')
        with open(mount.path + '/f0') as file, open(mount.backing + '/f0', 'a'):
            file.read()
        cls.quote(mount, 'violated')
        shutil.copytree(mount.backing, cls.work + '/tree')

    @classmethod
    def of_two_pcrs(cls, mount):
        cls.keep(mount, 'AK2')
        os.mkdir(mount.backing + '/second')
        for name in ('good', 'second/evil', 'second/good', 'excluded'):
            with open(f'{mount.backing}/{name}', 'w') as file:
                file.write(name.split('/')[-1])
            with open(f'{mount.path}/{name}') as file:
                file.read()
        cls.quote(mount, 'two')
        cls.save_base('two', 'AK2')
        shutil.copytree(mount.backing + '/second', cls.work + '/tree/second')

    @classmethod
    def of_signed_files(cls, mount):
        """A file with another digest than is allowed, and that one for its signature."""
        cls.keep(mount, 'AK4')
        with open(mount.backing + '/good', 'w') as file:
            file.write('malicious')
        os.setxattr(mount.backing + '/good', 'security.ima', b'\3:\0' + hashlib.sha256(b'good').digest())
        with open(mount.path + '/good') as file:
            file.read()
        cls.quote(mount, 'signed')

    @classmethod
    def of_a_name(cls, mount):
        """A file whose path is longer than a path may be is logged by its last part alone, or by a form of its own."""
        cls.keep(mount, 'AK3')
        here = os.getcwd()
        os.chdir(mount.path)
        try:
            for _ in range(17):
                os.mkdir('d' * 250)
                os.chdir('d' * 250)
            with open('boot_aggregate', 'w') as file:
                file.write('evil')
            with open('boot_aggregate') as file:
                file.read()
        finally:
            os.chdir(here)
        cls.quote(mount, 'named')

    def words_of(self, source, path, options):
        ak = {'two': 'AK2', 'named': 'AK3', 'signed': 'AK4'}.get(source, 'AK')
        words = ['verify', '--quote', path]
        if '--nonce' not in options and NO_NONCE not in options:
            words += ['--nonce', NONCE]
        if '--ak' not in options and NO_AK not in options:
            words += ['--ak', f'{self.work}/{ak}.pem']
        for option in options:
            if option == ALLOW:
                words += ['--allow', self.work + '/allow']
            elif option not in (NO_AK, NO_NONCE):
                words.append(f'{self.work}/{option}' if option.startswith(('AK.', 'BASE.')) else option)
        return words

    def row(self, title, source, change, options, code, failing, unchecked):
        path = self.work + '/row'
        evidence = Evidence(f'{self.work}/{source}', path, source if source in SIZES else 'sha256')
        try:
            change(evidence)
            words = self.words_of(source, path, options)
            done = subprocess.run([IMAFS, *words], stdout=subprocess.PIPE, stderr=subprocess.PIPE, timeout=30)
            text = done.stdout.decode()
            self.assertEqual(code, done.returncode, text + done.stderr.decode())
            self.assertTrue(all(c == '\n' or c.isprintable() for c in text), text)
            points = {mark: {name for name in re.findall(rf'^  {re.escape(mark)} +(\w+):', text, re.M)} for mark in ('ok', 'FAIL', '?')}
            for mark, names in (('FAIL', failing), ('?', unchecked)):
                if names is not None:
                    self.assertEqual(set(names.split()), points[mark], text)
            if text:
                found = json.loads(subprocess.run([IMAFS, *words, '--json'], stdout=subprocess.PIPE, timeout=30).stdout)
                self.assertEqual({VERIFIED: True, MISMATCH: False, INCOMPLETE: None}[code], found['holds'])
                for mark, holds in (('ok', True), ('FAIL', False), ('?', None)):
                    self.assertEqual(points[mark], {check['name'] for check in found['checks'] if check['holds'] is holds})
                self.others(evidence, words, points, code)
        finally:
            shutil.rmtree(path)

    def others(self, evidence, words, points, code):
        """Each judge on what it can judge; counts itself."""
        key = words[words.index('--ak') + 1] if '--ak' in words else evidence.file('ak.pem')
        if key.endswith('.pem') and not (points['?'] | points['FAIL']) & {'key'}:
            r = subprocess.run(['openssl', 'pkey', '-pubin', '-in', key, '-noout'], stderr=subprocess.DEVNULL)
            self.assertEqual(0, r.returncode)
            self.openssl(evidence, key, points)
            self.checkquote(evidence, key, words, points)
        if '--base' not in words:
            self.evmctl(evidence, points)
            self.keylime(evidence, words, points, code)

    def openssl(self, evidence, key, points):
        signature = evidence.read('quote.sig')
        if len(signature) != 72:
            return
        half = lambda at: b'\x02' + (lambda n: bytes([len(n)]) + n)((b'\0' if signature[at] > 127 else b'') + signature[at:at + 32])
        body = half(6) + half(40)
        evidence.write('der', b'\x30' + bytes([len(body)]) + body)
        done = subprocess.run(['openssl', 'dgst', '-sha256', '-verify', key, '-signature', 'der', 'quote.msg'], cwd=evidence.path, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        self.assertEqual(done.returncode == 0, 'signature' in points['ok'], 'openssl')
        self.asked['openssl'] += 1

    def checkquote(self, evidence, key, words, points):
        if '--nonce' not in words or evidence.read('pcrs') == b'rubbish\n' or len(evidence.pcrs()) < 11 or b'sm3' in evidence.read('pcrs'):
            return
        done = subprocess.run(['tpm2_checkquote', '-u', key, '-m', 'quote.msg', '-s', 'quote.sig', '-f', 'pcrs.bin', '-g', 'sha256', '-q', words[words.index('--nonce') + 1]],
                              cwd=evidence.path, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        # It takes bytes behind the quote and the signature.
        if len(evidence.read('quote.sig')) == 72 and 'quote' not in points['FAIL']:
            self.assertEqual(done.returncode == 0, {'signature', 'nonce', 'pcrs'} <= points['ok'], 'tpm2_checkquote')
            self.asked['tpm2_checkquote'] += 1

    def evmctl(self, evidence, points):
        try:
            records, values = evidence.records(), evidence.pcrs()
        except ValueError:
            return
        if not records or not all(r.pcr in values for r in records) or evidence.bank != 'sha256' or any(len(r.name()) > 4096 or b'\n' in r.name() for r in records):
            return
        used = {r.pcr for r in records}
        starts = (fold(records[:count], start={pcr: bytes(32) for pcr in used}) for count in range(len(records)))
        if len(values) < 11 or any(start == {pcr: values[pcr] for pcr in used} for start in starts) or not used & {10}:
            return  # it stops where the values fit, and wants all values
        if any(not r.is_violation() and r.digest != r.extends('sha256') for r in records):
            return  # its lists have sha1 digests: those of the record are not seen
        evidence.write('log1', b''.join(r.bytes(bytes(20) if r.is_violation() else r.extends('sha1')) for r in records))
        evidence.write('pcrs1', ''.join(f'PCR-{pcr:02d}: {value.hex()}\n' for pcr, value in values.items()).encode())
        done = subprocess.run(['evmctl', 'ima_measurement', '--ignore-violations', '--pcrs', 'sha256,pcrs1', 'log1'], cwd=evidence.path, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
        self.assertEqual(done.returncode == 0, 'log' not in points['FAIL'], f'evmctl: {done.stderr}')
        self.asked['evmctl'] += 1

    def keylime(self, evidence, words, points, code):
        """Zero to the quoted value, PCR 10 alone; every file, the boot_aggregate and the data of imafs's own in a policy; no violation."""
        try:
            records = evidence.records()
        except ValueError:
            return
        values = evidence.pcrs()
        if 10 not in values or '--allow' not in words or any(r.pcr != 10 for r in records) or evidence.bank != 'sha256':
            return
        with open(self.work + '/allow') as file:
            policy = json.load(file)
        boot = hashlib.sha256(b''.join(values[pcr] for pcr in range(10) if pcr in values)).hexdigest()
        policy['digests']['boot_aggregate'] = [boot]
        good = not any(r.is_violation() for r in records) and fold(records).get(10) == values[10]
        # It knows no other templates, and takes an ima-buf entry for one whatever is in it.
        good = good and all(r.template in (b'ima-ng', b'ima-sig', b'ima-buf') for r in records)
        if any(r.template == b'ima-buf' and r.name().startswith(b'/') for r in records):
            return
        for record in records:
            name, digest = record.name().decode(errors='replace'), record.fields[0].split(b':\0', 1)[1].hex()
            if record.template != b'ima-buf' and not any(re.match(exclude, name) for exclude in policy['excludes']):
                good = good and digest in policy['digests'].get(name, [])
        # What Keylime does not look at here: key, nonce and signature.
        ours = not points['FAIL'] & {'log', 'files', 'boot_aggregate'} and 'files' in points['ok']
        if 'pcrs' in points['ok']:
            self.assertEqual(good, ours, 'the parser to Keylime\'s rules')
            self.asked['Keylime\'s rules'] += 1

    def test_every_row(self):
        self.asked = {name: 0 for name in ('openssl', 'tpm2_checkquote', 'evmctl', 'Keylime\'s rules')}
        self.assertGreaterEqual(len(ROWS), 60)
        for row in ROWS:
            with self.subTest(row[0], evidence=row[1]):
                self.row(*row)
        print(f'{len(ROWS)} rows; asked too: ' + ', '.join(f'{name} on {count}' for name, count in self.asked.items()))
        self.assertGreaterEqual(min(self.asked.values()), 10, self.asked)


class Pretenders(unittest.TestCase):
    """Directories that claim to be a mount of imafs, and logs whose names are made for those who read them."""

    def setUp(self):
        self.work = tempfile.mkdtemp(prefix='imafs-e2e-')
        self.addCleanup(shutil.rmtree, self.work, ignore_errors=True)
        self.marker = self.work + '/was-here'

    def pretend(self, directory):
        os.makedirs(directory + '/.ima')
        status = {'version': '1', 'backing': '/', 'entries': 9, 'options': {'state': self.work, 'tcti': 'cmd:touch ' + self.marker, 'pcr': '10', 'base': ''}}
        with open(directory + '/.ima/status', 'w') as file:
            json.dump(status, file)
        for name in ('binary_runtime_measurements', 'measurements', 'policy', 'trim_log'):
            open(f'{directory}/.ima/{name}', 'w').close()

    def ask_all(self, directory):
        for words in (('verify', directory), ('quote', directory, '--nonce', '00', '-o', self.work + '/e'), ('ak', directory), ('log', directory),
                      ('report', directory, '-o', self.work + '/r'), ('log', 'trim', directory, '--keep', '1'), ('top', directory)):
            done = subprocess.run([IMAFS, *words], stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, timeout=20)
            self.assertEqual(2, done.returncode, (words, done.stdout, done.stderr))
            self.assertRegex(done.stderr, r'^imafs: .*\n$')
            self.assertFalse(os.path.exists(self.marker), words)

    def test_a_directory(self):
        self.pretend(self.work + '/d')
        self.ask_all(self.work + '/d')

    def test_a_directory_inside_a_mount_and_a_part_of_one_that_is_bound(self):
        with Mount() as mount:
            self.pretend(mount.backing + '/inside')
            self.ask_all(mount.path + '/inside')
            os.mkdir(self.work + '/bound')
            subprocess.run(['mount', '--bind', mount.path + '/inside', self.work + '/bound'], check=True)
            try:
                self.ask_all(self.work + '/bound')
            finally:
                subprocess.run(['umount', self.work + '/bound'], check=True)

    def test_a_mount_of_another_kind(self):
        os.mkdir(self.work + '/d')
        subprocess.run(['mount', '-t', 'tmpfs', 'fuse.imafs', self.work + '/d'], check=True)
        try:
            self.pretend(self.work + '/d')
            self.ask_all(self.work + '/d')
        finally:
            subprocess.run(['umount', self.work + '/d'], check=True)

    def test_a_fifo_in_the_place_of_a_journal(self):
        os.makedirs(self.work + '/state/journal')
        os.mkfifo(self.work + '/state/journal/journal.000001')
        for words in (('log', self.work + '/state'), ('verify', self.work + '/state'), ('verify', '--state', self.work + '/state')):
            done = subprocess.run([IMAFS, *words], stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, timeout=20)
            self.assertIn(done.returncode, (1, 2), words)
            self.assertIn('no segment', done.stderr)

    def test_names_draw_nothing_and_break_no_line(self):
        names = [b'/\x1b[2J', b'/\x9b2J', b'/a\xc2\x9b2J', b'/a\xc2\x85b', b'/a\xe2\x80\xa8b', b'/a\xe2\x80\xaeb', b'/a\xe2\x81\xa6b', b'/\xff\xfe', b'/a\nb\rc', b'/\x7f',
                 b'=cmd()', b'+1', b'-1', b'@x', b'"', b'a,b', b'/\xed\xa0\x80']
        with open(self.work + '/log', 'wb') as file:
            file.write(b''.join(Record.file(name, bank='sha1').bytes() for name in names))
        for form in ('text', 'csv', 'json', 'ndjson', 'cel-json'):
            text = subprocess.run([IMAFS, 'log', self.work + '/log', '--format', form], stdout=subprocess.PIPE, check=True).stdout.decode()
            self.assertTrue(all(c == '\n' or c.isprintable() for c in text), (form, text))
            if form in ('text', 'csv'):
                self.assertEqual(len(names) + (form == 'csv'), len(text.splitlines()), text)
            if form == 'csv':
                self.assertNotRegex(text, r'(?m)[,\n]"?[=+@-]')
        for words in (('verify', self.work + '/log'), ('verify', self.work + '/log', '--json')):
            text = subprocess.run([IMAFS, *words], stdout=subprocess.PIPE).stdout.decode()
            self.assertTrue(all(c == '\n' or c.isprintable() for c in text), text)


if __name__ == '__main__':
    run_tests()
