/* SPDX-License-Identifier: MIT OR Apache-2.0 */
/*
 * What crosses from the kernel's side to ours: all numbers in the machine's byte order. The same layouts are asserted below
 * and in event.rs, which decodes them.
 */
#ifndef SNIFFER_EVENT_H
#define SNIFFER_EVENT_H

/* What happened. */
enum kind {
	KIND_FORK = 1,		/* pid made the process `other` */
	KIND_EXEC = 2,		/* pid, child of `other`, runs a program: a struct exec */
	KIND_RENAME = 3,	/* thread tid of pid is called comm now */
	KIND_EXIT = 4,		/* the last thread of pid has ended, with the status `other` of wait(2) */
	KIND_OOM = 5,		/* the OOM killer has chosen pid */
	KIND_BINDS = 16,	/* what a thread has bound: a struct slot */
	KIND_CLOSE = 17,	/* a socket that was told of is closed, by pid, out of the state `other` */
	KIND_BIND_FAILED = 18,	/* a bind was refused */
	KIND_LISTEN_FAILED = 19,/* a listen was refused */
	KIND_UNDECIDED = 20,	/* an attempt has led to no port in `other` ms, and may still be in its bind */
};

enum flags {
	FLAG_REUSEADDR = 1,	/* SO_REUSEADDR is set */
	FLAG_REUSEPORT = 2,	/* SO_REUSEPORT is set */
	FLAG_V6ONLY = 4,	/* IPV6_V6ONLY is set */
	FLAG_PRIVILEGED = 8,	/* has CAP_NET_BIND_SERVICE; looked up for refused binds of ports below 1024 only */
	FLAG_UNPROVEN = 16,	/* KIND_BIND_FAILED, KIND_UNDECIDED: nothing shows that the bind has come to its end */
};

/* One cache line. */
struct event {
	unsigned long long at_ns;	/* CLOCK_MONOTONIC, of binds to the tick; of KIND_*_FAILED: of the call that was refused */
	unsigned long long cookie;	/* of the socket */
	unsigned int pid;		/* thread group, in the first pid namespace */
	unsigned int tid;		/* thread */
	unsigned int other;		/* another process, see enum kind */
	unsigned int netns;		/* inode of the socket's network namespace; of processes: of the one they are in */
	unsigned int ifindex;		/* of KIND_*_FAILED: SO_BINDTODEVICE, or 0 */
	int error;			/* errno, negative; 0 where only the failure is known */
	unsigned short port;		/* local, 0 where none was given */
	unsigned short asked_port;	/* as the process asked for it: 0 lets the kernel choose */
	unsigned char kind;		/* enum kind */
	unsigned char protocol;		/* IPPROTO_TCP or IPPROTO_UDP */
	unsigned char family;		/* AF_INET or AF_INET6 */
	unsigned char flags;		/* enum flags */
	unsigned char address[16];	/* local; of AF_INET the first four bytes, network order */
};

/* What describes the process of an event. */
struct signature {
	unsigned long long start_ns;	/* CLOCK_BOOTTIME of its start; KIND_FORK: of the start of `other` */
	unsigned long long cgroup_id;	/* cgroup v2 */
	unsigned int uid;		/* effective */
	unsigned char comm[16];		/* of the thread; ended by NUL */
	unsigned int reserved;
};

/* Events of processes, and refusals that the process itself tells. */
struct signed_event {
	struct event event;
	struct signature by;
};

#define PROGRAM_BYTES 256
#define ARGUMENTS_BYTES 2048
#define ENVIRONMENT_BYTES 16384

/* An exec: the event, then the first bytes of the new program's arguments, then those of its environment. */
struct exec {
	struct signed_event event;
	unsigned int arguments;		/* bytes that follow of arguments */
	unsigned int environment;	/* and then of environment */
	unsigned int arguments_all;	/* bytes there are of arguments */
	unsigned int environment_all;	/* and of environment */
	unsigned char program[PROGRAM_BYTES];	/* path of the program as it was called, or of its interpreter */
	unsigned char data[ARGUMENTS_BYTES + ENVIRONMENT_BYTES];
};

/* How far a bind has come. */
enum stage {
	STAGE_NONE = 0,		/* there is none, or it was refused */
	STAGE_ATTEMPT = 1,	/* it has begun, and nobody has looked yet how it ended */
	STAGE_BOUND = 2,	/* it succeeded */
};

/* A bind, from its attempt to the close of its socket. One cache line. */
struct bind {
	unsigned long long at_ns;	/* CLOCK_MONOTONIC, to the tick: of the attempt */
	unsigned long long cookie;
	unsigned long long until_ns;	/* of the close, the same way; 0 while it is open */
	unsigned int pid;
	unsigned int tid;
	unsigned int netns;		/* inode of the socket's network namespace */
	unsigned short port;		/* as asked for; once it is bound, as it is */
	unsigned short asked_port;
	unsigned char address[16];
	unsigned char protocol;
	unsigned char family;
	unsigned char state;		/* the socket's when it was closed (enum of bpf.h, as TCP_LISTEN) */
	unsigned char reserved[4];
	unsigned char stage;		/* enum stage; the last, as it is the first that changes while it may be read */
};

/* Binds that a slot keeps: they are told together. */
#define BINDS 8

/*
 * The last binds of a thread; threads whose numbers end alike share a slot. Binds are numbered from 0 on, and lie at the last
 * bits of their numbers.
 */
struct slot {
	unsigned long long sk;		/* the kernel's address of the socket of the last bind */
	unsigned long long tick;	/* of the kernel's jiffies, */
	unsigned long long now_ns;	/* and CLOCK_MONOTONIC in it, */
	unsigned int is_now;		/* once it has moved on */
	unsigned int index;		/* which slot it is */
	unsigned int last;		/* number of the last bind */
	unsigned int told;		/* binds before this number were told */
	unsigned int busy;		/* threads that begin a bind now */
	unsigned char kind;		/* KIND_BINDS, where a struct event has it */
	unsigned char reserved_too[19];
	struct bind binds[BINDS];
};

/* What an open file is. */
enum file_kind {
	FILE_SOCKET = 1,	/* a socket of IPv4 or IPv6 */
	FILE_NAMESPACE = 2,	/* a namespace of any type */
};

/* An open file of interest, as the iterator tells it. */
struct open_file {
	unsigned int pid;		/* thread group, in the first pid namespace */
	unsigned int fd;
	unsigned long long inode;
	unsigned int kind;		/* enum file_kind */
	unsigned int flags;		/* of sockets: enum flags */
};

/* The options of a socket that decide who may bind beside it. */
struct socket_options {
	unsigned long long cookie;
	unsigned int flags;		/* enum flags */
	unsigned int reserved;
};

/* A TCP socket that is bound and does nothing else. */
struct bound_socket {
	unsigned long long cookie;	/* 0 where nobody has asked for it yet */
	unsigned long long inode;
	unsigned int pid;		/* who has it open: thread group, in the first pid namespace */
	unsigned int fd;
	unsigned int netns;		/* inode of its network namespace */
	unsigned int uid;
	unsigned int ifindex;		/* SO_BINDTODEVICE, or 0 */
	unsigned int flags;		/* enum flags */
	unsigned short family;		/* AF_INET or AF_INET6 */
	unsigned short port;
	unsigned char address[16];	/* of AF_INET the first four bytes, network order */
	unsigned int reserved;
};

/* Counters of one core. One program may interrupt another in the middle of counting: a change is told, a number is not exact. */
struct counters {
	unsigned long long attempts;	/* binds that began */
	unsigned long long listens;	/* listens that began */
	unsigned long long lost;	/* events that found no room */
};

_Static_assert(sizeof(struct event) == 64, "decoded by event.rs");
_Static_assert(__builtin_offsetof(struct event, error) == 36, "decoded by event.rs");
_Static_assert(__builtin_offsetof(struct event, kind) == 44, "decoded by event.rs");
_Static_assert(sizeof(struct signed_event) == 104, "decoded by event.rs");
_Static_assert(__builtin_offsetof(struct signed_event, by.comm) == 84, "decoded by event.rs");
_Static_assert(__builtin_offsetof(struct exec, program) == 120, "decoded by event.rs");
_Static_assert(__builtin_offsetof(struct exec, data) == 376, "decoded by event.rs");
_Static_assert(sizeof(struct open_file) == 24, "decoded by holders.rs");
_Static_assert(sizeof(struct socket_options) == 16, "decoded by holders.rs");
_Static_assert(sizeof(struct bound_socket) == 64, "decoded by holders.rs");
_Static_assert(__builtin_offsetof(struct bound_socket, address) == 44, "decoded by holders.rs");
_Static_assert(sizeof(struct bind) == 64, "decoded by event.rs");
_Static_assert(__builtin_offsetof(struct bind, state) == 58, "decoded by event.rs");
_Static_assert(__builtin_offsetof(struct bind, stage) == 63, "decoded by event.rs");
_Static_assert(__builtin_offsetof(struct bind, address) == 40, "decoded by event.rs");
_Static_assert(__builtin_offsetof(struct slot, index) == 28, "decoded by event.rs");
_Static_assert(__builtin_offsetof(struct slot, kind) == __builtin_offsetof(struct event, kind), "told apart by it");
_Static_assert(__builtin_offsetof(struct slot, binds) == 64, "decoded by event.rs");
_Static_assert(sizeof(struct slot) == 64 + BINDS * 64, "decoded by event.rs");

#endif
