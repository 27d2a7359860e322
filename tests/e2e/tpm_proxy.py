"""A swtpm and a proxy before it that can lose, spoil or hold back answers to TPM2_PCR_Extend."""
import os
import signal
import socket
import subprocess
import threading
import time

PCR_EXTEND = bytes.fromhex('00000182')
FAILURE = bytes.fromhex('8001' '0000000a' '00000101')  # TPM_RC_FAILURE


class Swtpm:
    def __init__(self, directory):
        self.directory = directory
        os.makedirs(directory, exist_ok=True)
        self.path = directory + '/sock'
        self.process = None
        self.start()

    def start(self):
        words = ['swtpm', 'socket', '--tpm2', '--tpmstate', f'dir={self.directory}', '--server', f'type=unixio,path={self.path}',
                 '--ctrl', f'type=unixio,path={self.path}.ctrl', '--flags', 'not-need-init,startup-clear']
        self.process = subprocess.Popen(words, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        for _ in range(200):
            with socket.socket(socket.AF_UNIX) as probe:
                try:
                    probe.connect(self.path + '.ctrl')
                    return
                except OSError:
                    time.sleep(0.01)
        raise AssertionError('swtpm did not start')

    def end(self):
        self.process.send_signal(signal.SIGKILL)
        self.process.wait()
        for path in (self.path, self.path + '.ctrl'):
            if os.path.exists(path):
                os.unlink(path)


class Proxy:
    """Listens where a swtpm would, on unix sockets, or with `port` on that TCP port and the next. `fault` meets the next
    extend: None, or one of FAULTS."""
    FAULTS = ('refused', 'not delivered', 'answer lost', 'answer spoiled', 'no answer')

    def __init__(self, swtpm, path, port=None):
        self.swtpm, self.path, self.port = swtpm, path, port
        self.tcti = f'swtpm:path={path}' if port is None else f'swtpm:host=127.0.0.1,port={port}'
        self.fault, self.met, self.extends = None, 0, 0
        self.open_ends = []
        self.listeners = []
        self.listen()

    def listen(self):
        for suffix, serve in (('', self.serve_commands), ('.ctrl', self.serve_control)):
            if self.port is None:
                listener = socket.socket(socket.AF_UNIX)
                if os.path.exists(self.path + suffix):
                    os.unlink(self.path + suffix)
                listener.bind(self.path + suffix)
            else:
                listener = socket.socket(socket.AF_INET)
                listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                listener.bind(('127.0.0.1', self.port + (suffix == '.ctrl')))
            listener.listen()
            self.listeners.append(listener)
            threading.Thread(target=self.accept, args=(listener, serve), daemon=True).start()

    def close(self):
        """As if the TPM's daemon had gone: nobody listens any more."""
        for end in self.listeners + self.open_ends:
            try:
                end.shutdown(socket.SHUT_RDWR)
            except OSError:
                pass
            end.close()
        self.listeners, self.open_ends = [], []

    def accept(self, listener, serve):
        while True:
            try:
                client, _ = listener.accept()
            except OSError:
                return
            self.open_ends.append(client)
            threading.Thread(target=serve, args=(client,), daemon=True).start()

    def upstream(self, suffix):
        end = socket.socket(socket.AF_UNIX)
        end.connect(self.swtpm.path + suffix)
        return end

    def serve_control(self, client):
        with client, self.upstream('.ctrl') as tpm:
            while data := self.receive(client):
                tpm.sendall(data)
                client.sendall(tpm.recv(4096))

    def serve_commands(self, client):
        with client:
            try:
                with self.upstream('') as tpm:
                    while command := self.receive(client):
                        if not self.answer(client, tpm, command):
                            return
            except OSError:
                pass

    def answer(self, client, tpm, command):
        fault = None
        if command[6:10] == PCR_EXTEND:
            self.extends += 1
            fault, self.fault = self.fault, None
            self.met += fault is not None
        if fault == 'not delivered':
            return False
        if fault == 'refused':
            client.sendall(FAILURE)
            return True
        tpm.sendall(command)
        answer = tpm.recv(4096)
        if fault == 'answer lost':
            return False
        if fault == 'answer spoiled':
            client.sendall(answer[:6] + b'\xff' * (len(answer) - 6))
            return True
        if fault == 'no answer':
            tpm.close()  # a swtpm serves one connection at a time
            self.receive(client)  # until the other side has enough
            return False
        client.sendall(answer)
        return True

    @staticmethod
    def receive(end):
        try:
            return end.recv(4096)
        except OSError:
            return b''
