// The loops that a shell or Python would drown: ops NAME FILE-OR-LIST [NUMBER...] prints the seconds one of them took.
#define _GNU_SOURCE
#include <fcntl.h>
#include <spawn.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

extern char **environ;

static void must(int good, const char *what) {
  if (good) return;
  perror(what);
  exit(1);
}

static double now(void) {
  struct timespec time;
  clock_gettime(CLOCK_MONOTONIC, &time);
  return (double)time.tv_sec + (double)time.tv_nsec / 1e9;
}

static unsigned long next_random(unsigned long *state) {
  *state = *state * 6364136223846793005UL + 1442695040888963407UL;
  return *state >> 20;
}

// Names, one a line.
static char **names_of(const char *list, size_t *count) {
  FILE *file = fopen(list, "r");
  must(file != NULL, list);
  char **names = NULL;
  char *line = NULL;
  size_t size = 0;
  ssize_t length;
  *count = 0;
  while ((length = getline(&line, &size, file)) > 0) {
    if (line[length - 1] == '\n') line[length - 1] = 0;
    names = realloc(names, (*count + 1) * sizeof *names);
    names[(*count)++] = strdup(line);
  }
  fclose(file);
  return names;
}

static void read_whole(const char *path, char *buffer, size_t size) {
  const int fd = open(path, O_RDONLY | O_CLOEXEC);
  must(fd >= 0, path);
  ssize_t got;
  while ((got = read(fd, buffer, size)) > 0) {
  }
  must(got == 0, path);
  close(fd);
}

static void write_whole(const char *path, char *buffer, size_t total, size_t block) {
  const int fd = open(path, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0644);
  must(fd >= 0, path);
  for (size_t done = 0; done < total; done += block) must(write(fd, buffer, block) == (ssize_t)block, path);
  must(close(fd) == 0, path);
}

static void read_mapped(const char *path) {
  const int fd = open(path, O_RDONLY | O_CLOEXEC);
  struct stat attr;
  must(fd >= 0 && fstat(fd, &attr) == 0, path);
  volatile unsigned char *bytes = mmap(NULL, (size_t)attr.st_size, PROT_READ, MAP_SHARED, fd, 0);
  must(bytes != MAP_FAILED, path);
  unsigned sum = 0;
  for (off_t at = 0; at < attr.st_size; at += 4096) sum += bytes[at];
  munmap((void *)bytes, (size_t)attr.st_size);
  close(fd);
}

// `count` reads or writes of a block at random places.
static void random_blocks(const char *path, char *buffer, size_t block, size_t count, int writes) {
  const int fd = open(path, (writes ? O_RDWR : O_RDONLY) | O_CLOEXEC);
  struct stat attr;
  must(fd >= 0 && fstat(fd, &attr) == 0, path);
  unsigned long state = 4711;
  for (size_t i = 0; i < count; ++i) {
    const off_t at = (off_t)(next_random(&state) % ((unsigned long)attr.st_size / block) * block);
    must((writes ? pwrite(fd, buffer, block, at) : pread(fd, buffer, block, at)) == (ssize_t)block, path);
  }
  close(fd);
}

static void run_program(char *path, long times) {
  for (long i = 0; i < times; ++i) {
    char *arguments[] = {path, NULL};
    pid_t child;
    int status;
    must(posix_spawn(&child, path, NULL, NULL, arguments, environ) == 0, path);
    must(waitpid(child, &status, 0) == child && status == 0, path);
  }
}

int main(int count, char **words) {
  must(count >= 3, "usage: ops NAME FILE-OR-LIST [NUMBER...]");
  const char *name = words[1];
  char *target = words[2];
  const size_t first = count > 3 ? strtoul(words[3], NULL, 10) : 0;
  const size_t second = count > 4 ? strtoul(words[4], NULL, 10) : 0;
  char *buffer = malloc(1 << 20);
  memset(buffer, 'x', 1 << 20);
  size_t files = 0;
  char **list = NULL;
  const int takes_list = strncmp(name, "each-", 5) == 0;
  if (takes_list) list = names_of(target, &files);

  const double start = now();
  if (strcmp(name, "read") == 0) read_whole(target, buffer, first);
  else if (strcmp(name, "read-mapped") == 0) read_mapped(target);
  else if (strcmp(name, "read-random") == 0) random_blocks(target, buffer, 4096, first, 0);
  else if (strcmp(name, "write") == 0) write_whole(target, buffer, first, second);
  else if (strcmp(name, "write-random") == 0) random_blocks(target, buffer, 4096, first, 1);
  else if (strcmp(name, "run") == 0) run_program(target, (long)first);
  else if (takes_list) {
    for (size_t i = 0; i < files; ++i) {
      struct stat attr;
      if (strcmp(name, "each-read") == 0) read_whole(list[i], buffer, 65536);
      else if (strcmp(name, "each-write") == 0) write_whole(list[i], buffer, 4096, 4096);
      else if (strcmp(name, "each-stat") == 0) must(lstat(list[i], &attr) == 0, list[i]);
      else if (strcmp(name, "each-unlink") == 0) must(unlink(list[i]) == 0, list[i]);
      else must(0, name);
    }
  } else {
    must(0, name);
  }
  printf("%.9f\n", now() - start);
  return 0;
}
