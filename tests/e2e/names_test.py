"""Any byte string may be a file name: one entry is one line of UTF-8, no two names look alike, the log replays."""
import unittest

from mounting import Mount, run_tests

NASTY = [b'new\nline', b'\n', b'tab\there', b'\x1b[31mred', b'\xff\xfe', b'\xc3\xa9', b'\xc3', b'\xed\xa0\x80', b'\xf4\x90\x80\x80', b'%0A', b'100%',
         b'a b', b'"quoted"', b"it's", b'back\\slash', b'//', b'-rf', b'x' * 255, '\u202egnp.exe'.encode(), b'\x7f', b'boot_aggregate']


class Names(unittest.TestCase):
    def test_all_names_of_one_and_two_bytes(self):
        with Mount() as mount:
            below, above = mount.backing.encode(), mount.path.encode()
            names = [bytes([a]) for a in range(1, 256)] + [bytes([a, b]) for a in range(1, 256) for b in range(1, 256)] + NASTY
            names = sorted({name for name in names if b'/' not in name and name not in (b'.', b'..')})
            for number, name in enumerate(names):
                with open(below + b'/' + name, 'wb') as file:
                    file.write(b'%d' % number)
            before = int(mount.control('runtime_measurements_count'))
            for number, name in enumerate(names):
                with open(above + b'/' + name, 'rb') as file:
                    self.assertEqual(b'%d' % number, file.read())
            text = mount.control('measurements')
            text.decode('utf-8')
            lines = text.split(b'\n')[before:-1]
            self.assertEqual(len(names), len(lines))
            self.assertEqual(before + len(names), int(mount.control('runtime_measurements_count')))
            for line in lines:
                self.assertTrue(line.startswith(b'10 '))
                self.assertFalse(any(byte < 0x20 or byte == 0x7f for byte in line))
            # Blanks and underscores share a form, as in the kernel; nothing else does.
            logged = [line.split(b' ', 4)[4] for line in lines]
            self.assertEqual(len({name.replace(b' ', b'_') for name in names}), len(set(logged)))
            self.assertEqual(0, mount.verify().returncode)


if __name__ == '__main__':
    run_tests()
