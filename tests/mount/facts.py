"""What a directory does of what POSIX and ext4 promise: one line for each fact, `name answer`.

Run by posix.rs in a cask and in an ordinary directory; argument: an empty directory of one's own.
"""
import ctypes, errno, fcntl, mmap, os, select, stat, struct, subprocess, sys

libc = ctypes.CDLL(None, use_errno=True)
os.chdir(sys.argv[1])
os.umask(0o22)


def answer(call, *args, **named):
    """What a call answers, or the name of its errno."""
    try:
        found = call(*args, **named)
    except OSError as error:
        return errno.errorcode[error.errno]
    return "ok" if found is None else found


def c(name, *args):
    args = [ctypes.c_long(a) if isinstance(a, int) else a for a in args]
    return "ok" if getattr(libc, name)(*args) >= 0 else errno.errorcode[ctypes.get_errno()]


def put(name, data=b"", mode=None):
    with open(name, "wb") as file:
        file.write(data)
    if mode is not None:
        os.chown(name, 1000, 1000)
        os.chmod(name, mode)
    return name


def opened(name, flags):
    fd = answer(os.open, name, flags, 0o644)
    if isinstance(fd, int):
        os.close(fd)
        return "ok"
    return fd


def mode(name):
    return oct(os.lstat(name).st_mode & 0o7777)[2:]


def by(uid, body):
    """What a process of another user says."""
    here, there = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            os.setgroups([])
            os.setgid(uid)
            os.setuid(uid)
            said = body()
        except BaseException as error:
            said = repr(error)
        os.write(there, str(said).encode())
        os._exit(0)
    os.close(there)
    said = os.read(here, 9999).decode()
    os.waitpid(child, 0)
    return said


def moved(name, act):
    """Which of atime, mtime and ctime an act moves."""
    times = lambda s: (s.st_atime_ns, s.st_mtime_ns, s.st_ctime_ns)
    before = times(os.lstat(name))
    select.select([], [], [], 0.02)
    act()
    after = times(os.lstat(name))
    return "".join(w if x != y else "-" for w, x, y in zip("amc", before, after))


def rewrite(name):
    fd = os.open(name, os.O_WRONLY)
    os.write(fd, b"z")
    os.close(fd)


def fact(name, *found):
    print(name, *(str(one).replace(" ", "") for one in found), flush=True)


# Opening.
put("f", b"abc")
os.symlink("f", "l")
os.mkdir("d")
fact("open-excl", opened("f", os.O_CREAT | os.O_EXCL))
fact("open-nofollow", opened("l", os.O_NOFOLLOW))
fact("open-directory", opened("f", os.O_DIRECTORY), opened("d", os.O_WRONLY))
fact("open-noatime-path", opened("f", os.O_NOATIME), opened("f", os.O_PATH))
fact("open-slash", opened("f/", 0), opened("no/", os.O_WRONLY | os.O_CREAT))
fact("open-tmpfile", opened(".", os.O_RDWR | os.O_TMPFILE))
fact("open-trunc", opened("f", os.O_WRONLY | os.O_TRUNC), os.stat("f").st_size)

# Appending.
fd = os.open(put("a", b"abc"), os.O_RDWR | os.O_APPEND)
os.write(fd, b"d")
os.pwrite(fd, b"e", 0)
fact("append-ignores-offsets", os.pread(fd, 9, 0).decode())
put("aa")
for byte in (b"a", b"b"):
    if os.fork() == 0:
        fd = os.open("aa", os.O_WRONLY | os.O_APPEND)
        for _ in range(100):
            os.write(fd, byte * 5000)
        os._exit(0)
for _ in range(2):
    os.wait()
data = open("aa", "rb").read()
torn = sum(len(set(data[at : at + 5000])) > 1 for at in range(0, len(data), 5000))
fact("append-is-atomic", len(data), torn)

# Synchronous and direct.
fd = os.open("s", os.O_RDWR | os.O_CREAT | os.O_SYNC)
here = os.open(".", 0)
fact("sync", os.write(fd, b"x"), answer(os.fsync, fd), answer(os.fdatasync, fd), c("syncfs", fd))
fact("sync-directory", answer(os.fsync, here), answer(os.fdatasync, here))
fact("sync-dsync", opened("s", os.O_RDWR | os.O_DSYNC), answer(os.pwritev, fd, [b"x"], 0, os.RWF_DSYNC))
fact("nowait", answer(os.preadv, fd, [bytearray(1)], 0, os.RWF_NOWAIT))
fd = os.open("di", os.O_RDWR | os.O_CREAT | os.O_DIRECT)
page = memoryview(mmap.mmap(-1, 8192))
fact("direct", os.pwritev(fd, [page[:4096]], 0), os.preadv(fd, [page[:4096]], 0))
fact("direct-unaligned", answer(os.pwritev, fd, [page[1:100]], 0))

# Names.
at = lambda a, b, flags: c("renameat2", -100, a.encode(), -100, b.encode(), flags)
put("ra", b"a")
put("rb", b"b")
fact("rename-flags", at("ra", "rb", 1), at("ra", "no", 2), at("ra", "rb", 3), at("ra", "rb", 8), at("ra", "rb", 2))
fact("rename-whiteout", at("ra", "rc", 4), stat.filemode(os.lstat("ra").st_mode), os.lstat("ra").st_rdev)
os.makedirs("rd/s")
fact("rename-dots", answer(os.rename, ".", "z"), answer(os.rename, "..", "z"), answer(os.rename, "rd", "rd/s/x"))
put("u", b"hello")
fd = os.open("u", os.O_RDWR)
os.unlink("u")
os.pwrite(fd, b"J", 0)
fact("unlinked-lives", os.pread(fd, 9, 0).decode(), os.fstat(fd).st_nlink, answer(os.ftruncate, fd, 2), answer(os.fchmod, fd, 0o600))
put("la")
os.symlink("la", "ls")
fact("link", answer(os.link, "la", "lb"), os.stat("la").st_nlink, answer(os.link, "d", "ld"))
fact("link-of-symlink", answer(os.link, "ls", "lt", follow_symlinks=False), os.lstat("lt").st_nlink)
fact("symlink", os.lstat("ls").st_size, mode("ls"), answer(os.symlink, "", "no"), answer(os.symlink, "x" * 4096, "no"))
for many in range(1, 65_001):
    if answer(os.link, "la", f"d/{many}") != "ok":
        break
fact("link-max", os.stat("la").st_nlink, answer(os.link, "la", "no"))
for name in os.listdir("d"):
    os.unlink(f"d/{name}")
name = lambda length: opened("n" * length, os.O_WRONLY | os.O_CREAT)
fact("name-max", name(255), name(256))

# Sizes and holes.
fact("truncate-bad", answer(os.truncate, "a", -1), answer(os.truncate, ".", 0))
fact("size-max", answer(os.truncate, "a", 1 << 50), answer(os.truncate, "a", (1 << 62) - 1), answer(os.truncate, "a", 1 << 62))
os.truncate("a", 0)
fd = os.open("h", os.O_RDWR | os.O_CREAT)
os.pwrite(fd, b"a", 0)
os.pwrite(fd, b"b", 1 << 20)
os.fsync(fd)
seek = lambda offset, how: answer(os.lseek, fd, offset, how)
fact("seek-hole", seek(0, os.SEEK_HOLE), seek(8192, os.SEEK_DATA), seek(1 << 21, os.SEEK_DATA))
fd = os.open(put("fa", b"x" * 10000), os.O_RDWR)
do = lambda how: c("fallocate", fd, how, 4096, 4096)
fact("fallocate", do(0), do(1), do(3), do(0x10), do(0x11), os.fstat(fd).st_size)
fact("fallocate-bad", do(2), c("fallocate", fd, 0, -1, 1), c("fallocate", fd, 0, 0, 0))
fact("fallocate-shift", do(8), do(0x20))
fact("fallocate-too-much", c("fallocate", fd, 0, 0, 1 << 60))

# Attributes.
put("x")
to = lambda name, value=b"1", **how: answer(os.setxattr, "x", name, value, **how)
fact("xattr-namespaces", to("user.a"), to("trusted.a"), to("security.a"), to("system.a"), to("bogus.a"), to("noprefix"), to("user."))
fact("xattr-names", to("user." + "n" * 250), to("user." + "n" * 251))
fact("xattr-sizes", to("user.b", b"v" * 3500), to("user.b", b"v" * 5000), to("user.b", b"v" * 65537))
put("xm")
many = [answer(os.setxattr, "xm", f"user.n{n}", b"v" * 100) for n in range(500)]
fact("xattr-many", many.count("ok"))
os.symlink("x", "xl")
os.mkfifo("xf")
no = lambda name, of: answer(os.setxattr, name, of, b"1", follow_symlinks=False)
fact("xattr-of-special", no("xl", "user.a"), no("xl", "trusted.a"), no("xf", "user.a"))
entries = [(1, 6, -1), (2, 4, 1000), (4, 4, -1), (0x10, 4, -1), (0x20, 4, -1)]
acl = struct.pack("<I", 2) + b"".join(struct.pack("<HHi", *entry) for entry in entries)
fact("acl", answer(os.setxattr, put("ac"), "system.posix_acl_access", acl))

# Times.
put("t", b"abc")
os.mkdir("td")
fd = os.open("t", os.O_RDWR)
fact("time-write", moved("t", lambda: os.pwrite(fd, b"x", 0)), moved("t", lambda: os.write(fd, b"")))
os.utime("t", ns=(1, 5))
fact("time-read", moved("t", lambda: os.pread(fd, 1, 0)), moved("td", lambda: os.listdir("td")))
fact("time-chmod", moved("t", lambda: os.chmod("t", 0o600)), moved("t", lambda: os.chown("t", 1, 1)))
fact("time-chown-nothing", moved("t", lambda: os.chown("t", -1, -1)))
fact("time-link", moved("t", lambda: os.link("t", "t2")), moved("t", lambda: os.unlink("t2")), moved("t", lambda: (os.rename("t", "t3"), os.rename("t3", "t"))))
fact("time-truncate", moved("t", lambda: os.truncate("t", 1)), moved("t", lambda: os.truncate("t", 1)))
fact("time-xattr", moved("t", lambda: os.setxattr("t", "user.q", b"")), moved("t", lambda: os.removexattr("t", "user.q")))
fact("time-directory", moved("td", lambda: put("td/a")), moved("td", lambda: put("td/a", b"x")), moved("td", lambda: os.unlink("td/a")))
fact("time-fallocate-keep", moved("t", lambda: c("fallocate", fd, 1, 0, 90000)))
far = []
for secs in (-(1 << 31) - 1, 1 << 33, 1 << 34, 1 << 40):
    os.utime("t", ns=(secs * 10**9 + 7, secs * 10**9 + 7))
    far.append(os.stat("t").st_mtime_ns == secs * 10**9 + 7)
fact("time-range", *far)

# Permissions.
os.mkdir("st")
os.chmod("st", 0o1777)
put("st/root")
fact("sticky", by(1000, lambda: [answer(os.unlink, "st/root"), answer(os.rename, "st/root", "st/x"), answer(put, "st/mine"), answer(os.unlink, "st/mine")]))
os.mkdir("sg")
os.chown("sg", 0, 77)
os.chmod("sg", 0o2777)
fact("setgid-directory", by(1000, lambda: [answer(os.mkdir, "sg/d"), mode("sg/d"), os.stat("sg/d").st_gid]))
put("si", b"abc", 0o6777)
fact("set-id-write", by(1001, lambda: [answer(rewrite, "si"), mode("si")]))
put("si", b"abc", 0o6777)
fact("set-id-truncate", by(1001, lambda: [answer(os.truncate, "si", 1), mode("si")]))
put("si", b"abc", 0o6777)
os.chown("si", 1, 1)
fact("set-id-chown", mode("si"))
put("si", b"abc", 0o6777)
rewrite("si")
fact("set-id-root", mode("si"))
put("si", b"abc", 0o2767)
fact("set-gid-without-x", by(1001, lambda: [answer(rewrite, "si"), mode("si")]))
put("pm")
os.chmod("pm", 0o600)
fact("refused", by(1000, lambda: [opened("pm", 0), answer(os.chmod, "pm", 0o777), answer(os.chown, "pm", 1000, 1000), answer(os.utime, "pm"), answer(put, "new"), answer(os.setxattr, "pm", "trusted.z", b"")]))

# Directories, locks, maps, copies, nodes.
fact("directory-size", os.stat("td").st_size)
put("td/a")
fact("directory-links", os.stat("rd").st_nlink, os.stat("td").st_nlink)
put("lk", b"x" * 100)
one, two = os.open("lk", os.O_RDWR), os.open("lk", os.O_RDWR)
fcntl.flock(one, fcntl.LOCK_EX)
held = answer(fcntl.flock, two, fcntl.LOCK_EX | fcntl.LOCK_NB)
fcntl.flock(one, fcntl.LOCK_UN)
fact("flock", held, answer(fcntl.flock, two, fcntl.LOCK_SH | fcntl.LOCK_NB))
fcntl.lockf(one, fcntl.LOCK_EX, 10, 0)
try_lock = lambda start: answer(fcntl.lockf, os.open("lk", os.O_RDWR), fcntl.LOCK_EX | fcntl.LOCK_NB, 10, start)
held = by(0, lambda: [try_lock(5), try_lock(50)])
os.close(os.open("lk", 0))
fact("fcntl-lock", held, by(0, lambda: try_lock(5)))
lock = struct.pack("hhllhh", fcntl.F_WRLCK, 0, 0, 10, 0, 0)
ofd = lambda fd: answer(lambda: fcntl.fcntl(fd, 37, lock) and None)
fact("ofd-lock", ofd(one), ofd(two))
fd = os.open(put("mm", b"a" * 8192), os.O_RDWR)
shared = mmap.mmap(fd, 8192)
shared[0:1] = b"Z"
shared.flush()
os.pwrite(fd, b"Y", 1)
private = mmap.mmap(fd, 8192, flags=mmap.MAP_PRIVATE)
private[2:3] = b"Q"
fact("mmap", os.pread(fd, 3, 0).decode(), shared[1:2].decode())
a, b = os.open(put("ca", b"a" * 100000), 0), os.open("cb", os.O_RDWR | os.O_CREAT)
fact("copy-file-range", answer(os.copy_file_range, a, b, 100000), os.fstat(b).st_size)
fact("reflink", answer(fcntl.ioctl, b, 0x40049409, a))
fact("file-flags", answer(lambda: fcntl.ioctl(a, 0x80086601, b"\0" * 8) and None))
fact("nodes", answer(os.mknod, "dn", 0o020600, os.makedev(1, 3)), os.minor(os.stat("dn").st_rdev), answer(os.mkfifo, "dp"), opened("dp", os.O_RDWR))
fact("node-opened", opened("dn", os.O_WRONLY))
born = subprocess.run(["stat", "-c", "%W", "."], capture_output=True, text=True).stdout.strip()
fact("birth-time", born not in ("0", "-"))
