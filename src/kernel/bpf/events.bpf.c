// SPDX-License-Identifier: MIT OR Apache-2.0
/*
 * Binds and processes, told as they happen. The cgroup hooks run inside the kernel's own bind, so io_uring is seen too, and
 * no other system call is slowed.
 *
 * A bind is an attempt (bind4, bind6) and then, if it succeeds, a post_bind. Nothing tells of a failure, so each thread's
 * last attempt is kept until something proves its end: the thread tries another, or closes the socket, which then has no
 * port. Where fexit loads, it tells the errno at once.
 *
 * A bind that succeeded is told when the thread's slot is needed again, or with the close of its socket, whichever comes
 * first: a socket that lives shortly is one event. The reader looks into the slots for those that stay.
 *
 * What is done per bind is counted in tens of nanoseconds: no hash table, events of one cache line, a clock that only ticks,
 * and no field of a socket is read that is not needed at once.
 */
#include "kernel.h"
#include "event.h"

/* Events that may wait. Each page is mapped twice by the reader, so this counts double in its resident memory. */
#define RING_BYTES (2 * 1024 * 1024)
/* Threads whose attempts are kept apart. The reader walks over all of them. */
#define SLOTS 1024
/* No bind takes so long. */
#define LONG_AGO_NS 1000000000ULL

struct {
	__uint(type, BPF_MAP_TYPE_RINGBUF);
	__uint(max_entries, RING_BYTES);
} ring SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, SLOTS);
	__type(key, __u32);
	__type(value, struct attempt);
} attempts SEC(".maps");

/* Open sockets that were told of: the cookie at its last bits. One that is pushed out is found by the next look. */
#define OPEN 65536

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, OPEN);
	__type(key, __u32);
	__type(value, __u64);
} open SEC(".maps");

/* Inodes of network namespaces, by the last bits of their cookies. Cookies are never used again. */
#define NETNS 256

struct netns {
	__u64 cookie;
	__u64 inode;
};

struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__uint(max_entries, NETNS);
	__type(key, __u32);
	__type(value, struct netns);
} namespaces SEC(".maps");

/* When and on which socket a thread began to listen last. */
struct listen {
	__u64 at_ns;
	__u64 cookie;
};

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, SLOTS);
	__type(key, __u32);
	__type(value, struct listen);
} listens SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, struct counters);
} counters SEC(".maps");

/* An exec is too large for the stack. */
struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, struct exec);
} scratch SEC(".maps");

static __always_inline struct counters *counted(void)
{
	__u32 zero = 0;
	return bpf_map_lookup_elem(&counters, &zero);
}

#define COUNT(what)                                \
	do {                                       \
		struct counters *mine = counted(); \
		if (mine)                          \
			mine->what++;              \
	} while (0)

static __always_inline void tell(const void *event, __u64 bytes)
{
	if (bpf_ringbuf_output(&ring, (void *)event, bytes, 0))
		COUNT(lost);
}

/* Milliseconds are enough for binds, and the helper for them costs a third. It is of Linux 5.11, and not for tracepoints. */
static __always_inline __u64 ticked(void)
{
	if (bpf_core_enum_value_exists(enum bpf_func_id, BPF_FUNC_ktime_get_coarse_ns))
		return bpf_ktime_get_coarse_ns();
	return bpf_ktime_get_ns();
}

static __always_inline __u64 *open_slot(__u64 cookie)
{
	__u32 slot = cookie & (OPEN - 1);
	return bpf_map_lookup_elem(&open, &slot);
}

static __always_inline struct attempt *attempt_of(__u32 tid)
{
	__u32 slot = tid & (SLOTS - 1);
	return bpf_map_lookup_elem(&attempts, &slot);
}

/* Who: the current process, as it is now. */
static __always_inline void sign(struct signature *by)
{
	struct task_struct *task = (struct task_struct *)bpf_get_current_task();

	by->cgroup_id = bpf_get_current_cgroup_id();
	by->start_ns = BPF_CORE_READ(task, group_leader, start_boottime);
	by->uid = bpf_get_current_uid_gid();
	bpf_get_current_comm(by->comm, sizeof(by->comm));
}

/* The protocol as users know it; 0 for those that have no ports of interest. */
static __always_inline unsigned char protocol_of(unsigned int protocol)
{
	switch (protocol) {
	case IPPROTO_TCP:
	case IPPROTO_MPTCP:
		return IPPROTO_TCP;
	case IPPROTO_UDP:
		return IPPROTO_UDP;
	}
	return 0;
}

/*
 * What the verifier knows as a pointer to a socket may be read only where it allows; as a number it may be read by probes.
 */
static __always_inline struct sock *plain(void *socket)
{
	struct sock *number = 0;
	bpf_probe_read_kernel(&number, sizeof(number), &socket);
	return number;
}

static __always_inline int may_bind_low(void)
{
	struct task_struct *task = (struct task_struct *)bpf_get_current_task();
	const struct cred *cred = BPF_CORE_READ(task, cred);
	__u64 effective = 0;

	bpf_core_read(&effective, sizeof(effective), &cred->cap_effective);
	return effective >> CAP_NET_BIND_SERVICE & 1;
}

/*
 * The fields of struct sock_common that are of interest lie close together: one copy of its beginning costs what a single
 * field would. Where in it each is, the loader fills in.
 */
#define COMMON_BYTES 64
#define COMMON(copy, type, field) \
	(*(type *)((copy) + bpf_core_field_offset(struct sock_common, field)))

static __always_inline void describe(struct event *event, const __u8 *common)
{
	struct sock_common *bits = (struct sock_common *)common;
	struct net *net = COMMON(common, struct net *, skc_net);

	event->netns = BPF_CORE_READ(net, ns.inum);
	event->ifindex = COMMON(common, __u32, skc_bound_dev_if);
	if (BPF_CORE_READ_BITFIELD(bits, skc_reuse) == SK_CAN_REUSE)
		event->flags |= FLAG_REUSEADDR;
	if (BPF_CORE_READ_BITFIELD(bits, skc_reuseport))
		event->flags |= FLAG_REUSEPORT;
	if (event->family == AF_INET6 && BPF_CORE_READ_BITFIELD(bits, skc_ipv6only))
		event->flags |= FLAG_V6ONLY;
}

static __always_inline void recall(struct event *event, const struct attempt *attempt)
{
	event->at_ns = attempt->at_ns;
	event->cookie = attempt->cookie;
	event->pid = attempt->pid;
	event->tid = attempt->tid;
	event->port = attempt->port;
	event->asked_port = attempt->asked_port;
	event->netns = attempt->netns;
	event->protocol = attempt->protocol;
	event->family = attempt->family;
	__builtin_memcpy(event->address, attempt->address, sizeof(event->address));
}

/* Tells of a refusal. Mostly the current process is the one that was refused; another one's name must not be told for it. */
static __noinline void refuse(const struct attempt *attempt, struct sock *sk, unsigned char kind, int error, unsigned char flags)
{
	struct signed_event told = {};
	__u8 common[COMMON_BYTES];

	recall(&told.event, attempt);
	told.event.kind = kind;
	told.event.error = error;
	told.event.flags = flags;
	if (sk && !bpf_probe_read_kernel(common, sizeof(common), sk))
		describe(&told.event, common);
	if (bpf_get_current_pid_tgid() >> 32 != attempt->pid) {
		tell(&told, sizeof(told.event));
		return;
	}
	sign(&told.by);
	if (told.event.port && told.event.port < 1024 && may_bind_low())
		told.event.flags |= FLAG_PRIVILEGED;
	tell(&told, sizeof(told));
}

/*
 * An attempt has ended without a port. Where the kernel was to choose one that is no refusal: with IP_BIND_ADDRESS_NO_PORT it
 * chooses at connect(2), and tells of no success before.
 */
static __always_inline void told_refused(struct attempt *slot, struct sock *sk, unsigned char flags)
{
	if (slot->port)
		refuse(slot, sk, KIND_BIND_FAILED, 0, flags);
}

static __always_inline __u32 netns_inode(__u64 cookie, void *socket)
{
	__u32 index = cookie & (NETNS - 1);
	struct netns *known = bpf_map_lookup_elem(&namespaces, &index);

	if (!known)
		return 0;
	if (known->cookie != cookie) {
		known->cookie = 0;
		known->inode = BPF_CORE_READ(plain(socket), __sk_common.skc_net.net, ns.inum);
		known->cookie = cookie;
	}
	return known->inode;
}

static __always_inline int begin(struct bpf_sock_addr *ctx, unsigned char family)
{
	unsigned char protocol = protocol_of(ctx->protocol);
	struct bpf_sock *socket = ctx->sk;
	__u64 ids = bpf_get_current_pid_tgid();
	struct attempt *slot = attempt_of(ids);
	__u64 now = ticked();

	if (!protocol || !socket || !slot)
		return 1;
	if (slot->stage == STAGE_BOUND) {
		__u64 *open = open_slot(slot->cookie);

		if (open && *open == slot->cookie) {
			struct event event = {};

			recall(&event, slot);
			event.kind = KIND_BOUND;
			tell(&event, sizeof(event));
		}
	} else if (slot->stage == STAGE_ATTEMPT) {
		/*
		 * A thread does one thing after the other: its attempt before this one has ended, and not in a bind. One of
		 * another thread that shares the slot may be in the middle of it.
		 */
		if (slot->tid == (__u32)ids) {
			told_refused(slot, 0, 0);
		} else if (now - slot->at_ns > LONG_AGO_NS) {
			told_refused(slot, 0, FLAG_UNPROVEN);
		} else {
			COUNT(lost);
			return 1;
		}
	}
	slot->at_ns = now;
	slot->cookie = bpf_get_socket_cookie(ctx);
	slot->pid = ids >> 32;
	slot->tid = ids;
	slot->netns = netns_inode(bpf_get_netns_cookie(ctx), socket);
	slot->port = __builtin_bswap16(ctx->user_port);
	slot->asked_port = slot->port;
	slot->protocol = protocol;
	slot->family = family;
	if (family == AF_INET) {
		*(__u32 *)&slot->address[0] = ctx->user_ip4;
	} else {
		*(__u32 *)&slot->address[0] = ctx->user_ip6[0];
		*(__u32 *)&slot->address[4] = ctx->user_ip6[1];
		*(__u32 *)&slot->address[8] = ctx->user_ip6[2];
		*(__u32 *)&slot->address[12] = ctx->user_ip6[3];
	}
	if (socket->src_port) {
		/* bind(2) refuses a socket that has a port. */
		slot->stage = STAGE_NONE;
		refuse(slot, plain(socket), KIND_BIND_FAILED, -EINVAL, 0);
		return 1;
	}
	slot->stage = STAGE_ATTEMPT;
	COUNT(attempts);
	return 1;
}

SEC("cgroup/bind4")
int bind4(struct bpf_sock_addr *ctx)
{
	return begin(ctx, AF_INET);
}

SEC("cgroup/bind6")
int bind6(struct bpf_sock_addr *ctx)
{
	return begin(ctx, AF_INET6);
}

static __always_inline int bound(struct bpf_sock *ctx)
{
	struct attempt *slot = attempt_of(bpf_get_current_pid_tgid());
	__u64 cookie = bpf_get_socket_cookie(ctx);
	__u64 *open;

	if (!slot || slot->stage != STAGE_ATTEMPT || slot->cookie != cookie)
		return 1;
	slot->port = ctx->src_port;
	slot->stage = STAGE_BOUND;
	open = open_slot(cookie);
	if (open)
		*open = cookie;
	return 1;
}

SEC("cgroup/post_bind4")
int post_bind4(struct bpf_sock *ctx)
{
	return bound(ctx);
}

SEC("cgroup/post_bind6")
int post_bind6(struct bpf_sock *ctx)
{
	return bound(ctx);
}

SEC("cgroup/sock_release")
int sock_release(struct bpf_sock *ctx)
{
	__u64 cookie = bpf_get_socket_cookie(ctx);
	__u64 *open = open_slot(cookie);
	__u64 ids = bpf_get_current_pid_tgid();
	struct attempt *slot = attempt_of(ids);
	struct event event = {};

	if (!open || !slot)
		return 1;
	if (*open == cookie) {
		*open = 0;
		event.at_ns = ticked();
		if (slot->cookie == cookie && slot->stage == STAGE_BOUND) {
			__u64 now = event.at_ns;

			slot->stage = STAGE_NONE;
			recall(&event, slot);
			event.kind = KIND_HELD;
			now -= event.at_ns;
			event.other = now;
			event.ifindex = now >> 32;
		} else {
			event.kind = KIND_CLOSE;
			event.cookie = cookie;
			event.pid = ids >> 32;
			event.tid = ids;
		}
		tell(&event, sizeof(event));
	} else if (slot->cookie == cookie && slot->stage == STAGE_ATTEMPT) {
		slot->stage = STAGE_NONE;
		told_refused(slot, plain(ctx), 0);
	}
	return 1;
}

/* A listen that is refused shows as LISTEN and CLOSE in one call: by the same thread, in less time than a call takes. */
#define SAME_CALL_NS 1000000
/* Both directions: the socket is being closed. */
#define SHUTDOWN_MASK 3

SEC("tp_btf/inet_sock_set_state")
int BPF_PROG(state, struct sock *sk, int before, int after)
{
	__u32 tid, index;
	struct listen *listen;
	struct attempt attempt = {};

	if (after != TCP_LISTEN && (before != TCP_LISTEN || sk->sk_shutdown == SHUTDOWN_MASK))
		return 0;
	tid = bpf_get_current_pid_tgid();
	index = tid & (SLOTS - 1);
	listen = bpf_map_lookup_elem(&listens, &index);
	if (!listen)
		return 0;
	if (after == TCP_LISTEN) {
		COUNT(listens);
		listen->at_ns = bpf_ktime_get_ns();
		listen->cookie = sk->__sk_common.skc_cookie.counter;
		return 0;
	}
	/* The cookie is read, not asked for: the helper is allowed here since Linux 5.12 only. */
	attempt.cookie = sk->__sk_common.skc_cookie.counter;
	if (listen->cookie != attempt.cookie || bpf_ktime_get_ns() - listen->at_ns > SAME_CALL_NS)
		return 0;
	attempt.at_ns = listen->at_ns;
	attempt.pid = bpf_get_current_pid_tgid() >> 32;
	attempt.tid = tid;
	attempt.port = sk->__sk_common.skc_num;
	attempt.asked_port = attempt.port;
	attempt.protocol = IPPROTO_TCP;
	attempt.family = sk->__sk_common.skc_family;
	if (attempt.family == AF_INET)
		*(__u32 *)&attempt.address[0] = sk->__sk_common.skc_rcv_saddr;
	else
		__builtin_memcpy(attempt.address, &sk->__sk_common.skc_v6_rcv_saddr, sizeof(attempt.address));
	refuse(&attempt, sk, KIND_LISTEN_FAILED, 0, 0);
	return 0;
}

static __always_inline void bind_ended(struct socket *socket, int result)
{
	struct attempt *slot;

	if (result >= 0 || !socket->sk)
		return;
	slot = attempt_of(bpf_get_current_pid_tgid());
	if (!slot || slot->stage != STAGE_ATTEMPT || slot->cookie != (__u64)socket->sk->__sk_common.skc_cookie.counter)
		return;
	slot->stage = STAGE_NONE;
	refuse(slot, socket->sk, KIND_BIND_FAILED, result, 0);
}

SEC("fexit/inet_bind")
int BPF_PROG(inet_bind_ended, struct socket *socket, void *address, int length, int result)
{
	bind_ended(socket, result);
	return 0;
}

SEC("fexit/inet6_bind")
int BPF_PROG(inet6_bind_ended, struct socket *socket, void *address, int length, int result)
{
	bind_ended(socket, result);
	return 0;
}

static __always_inline unsigned int netns_of(struct task_struct *task)
{
	return BPF_CORE_READ(task, nsproxy, net_ns, ns.inum);
}

/* An event of the current process. */
static __always_inline void now(struct signed_event *told, unsigned char kind)
{
	__u64 ids = bpf_get_current_pid_tgid();

	told->event.at_ns = bpf_ktime_get_ns();
	told->event.kind = kind;
	told->event.pid = ids >> 32;
	told->event.tid = ids;
	sign(&told->by);
}

SEC("tp_btf/sched_process_fork")
int BPF_PROG(forked, struct task_struct *parent, struct task_struct *child)
{
	struct signed_event told = {};

	/* A thread is no process. */
	if (child->pid != child->tgid)
		return 0;
	now(&told, KIND_FORK);
	/* With CLONE_PARENT the maker is not the parent. */
	told.event.pid = child->real_parent->tgid;
	told.event.other = child->tgid;
	told.event.netns = netns_of(child);
	told.by.start_ns = child->start_boottime;
	tell(&told, sizeof(told));
	return 0;
}

SEC("tp_btf/sched_process_exec")
int BPF_PROG(execed, struct task_struct *task, int old_pid, struct linux_binprm *program)
{
	__u32 zero = 0;
	struct exec *exec = bpf_map_lookup_elem(&scratch, &zero);
	struct mm_struct *mm = BPF_CORE_READ(task, mm);
	unsigned long arguments, environment, start, all;
	__u32 size;

	if (!exec || !mm)
		return 0;
	now(&exec->event, KIND_EXEC);
	exec->event.event.other = BPF_CORE_READ(task, real_parent, tgid);
	exec->event.event.netns = netns_of(task);
	bpf_probe_read_kernel_str(exec->program, sizeof(exec->program), BPF_CORE_READ(program, interp));

	start = BPF_CORE_READ(mm, arg_start);
	all = BPF_CORE_READ(mm, arg_end) - start;
	exec->arguments_all = all;
	arguments = all < ARGUMENTS_BYTES ? all : ARGUMENTS_BYTES - 1;
	arguments &= ARGUMENTS_BYTES - 1;
	if (bpf_probe_read_user(exec->data, arguments, (void *)start))
		arguments = 0;
	exec->arguments = arguments;

	start = BPF_CORE_READ(mm, env_start);
	all = BPF_CORE_READ(mm, env_end) - start;
	exec->environment_all = all;
	environment = all < ENVIRONMENT_BYTES ? all : ENVIRONMENT_BYTES - 1;
	environment &= ENVIRONMENT_BYTES - 1;
	arguments &= ARGUMENTS_BYTES - 1;
	if (bpf_probe_read_user(exec->data + arguments, environment, (void *)start))
		environment = 0;
	exec->environment = environment;

	size = __builtin_offsetof(struct exec, data) + arguments + environment;
	if (size > sizeof(*exec))
		return 0;
	tell(exec, size);
	return 0;
}

SEC("tp_btf/sched_process_exit")
int BPF_PROG(exited, struct task_struct *task)
{
	struct signed_event told = {};

	/* Threads end one by one; the process ends with the last. */
	if (task->signal->live.counter != 0)
		return 0;
	now(&told, KIND_EXIT);
	tell(&told, sizeof(told));
	return 0;
}

SEC("tp_btf/task_rename")
int BPF_PROG(renamed, struct task_struct *task, const char *comm)
{
	struct signed_event told = {};
	unsigned char *name = told.by.comm;

	now(&told, KIND_RENAME);
	/* Another thread of the process may do it. */
	told.event.tid = task->pid;
	bpf_probe_read_kernel_str(name, sizeof(told.by.comm), comm);
	/* Names of threads are of no interest, but for the marks that the agent itself sends. */
	if (task->pid != task->tgid && !(name[0] == 'f' && name[5] == ':'))
		return 0;
	tell(&told, sizeof(told));
	return 0;
}

char LICENSE[] SEC("license") = "Dual MIT/GPL";
