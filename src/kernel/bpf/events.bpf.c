// SPDX-License-Identifier: MIT OR Apache-2.0
/*
 * Binds and processes, told as they happen. The cgroup hooks run inside the kernel's own bind, so io_uring is seen too, and
 * no other system call is slowed.
 *
 * A bind is an attempt (bind4, bind6), and nothing is asked to run at its end: each hook costs a bind more than what is done
 * in it. How an attempt ended its socket tells, which has a port or has none, as soon as its thread tries another bind, the
 * socket is closed, or the reader has the slots looked through. Where fexit loads, it tells the errno at once.
 *
 * Each thread's last binds are kept in its slot and told together, with the closes of those that lived shortly: when the slot
 * is full, before the thread is told to be refused, and when the reader has the slots looked through.
 *
 * What is done per bind is counted in tens of nanoseconds: no hash table, few helpers, an event for several binds, a clock
 * that only ticks, and no field of a socket is read that is not needed at once.
 */
#include "kernel.h"
#include "event.h"

/* Events that may wait. Each page is mapped twice by the reader, so this counts double in its resident memory. */
#define RING_BYTES (2 * 1024 * 1024)
/* Threads whose binds are kept apart, and how many of them are looked through in one run. */
#define SLOTS 1024
#define LOOKED_THROUGH 64
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
	__type(value, struct slot);
} slots SEC(".maps");

/*
 * Open sockets whose binds were seen: a set of ways, which lie beside each other, for the last bits of their cookies. Those that live
 * long stay where the many that live shortly pass. One that is pushed out is found by the next look.
 */
#define SETS 16384
#define WAYS 4

struct open {
	__u64 cookie;
	__u32 slot;
	__u32 number;	/* of the bind, in the slot */
};

struct open_set {
	struct open ways[WAYS];
};

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, SETS);
	__type(key, __u32);
	__type(value, struct open_set);
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

/*
 * Milliseconds are enough for binds, and the helper for them costs a third. It is of Linux 5.11, and not for tracepoints.
 *
 * Within a tick it need not be asked again, but for once: the clock moves on shortly after the tick is counted.
 */
static __always_inline __u64 ticked(struct slot *slot)
{
	__u64 tick;

	if (!bpf_core_enum_value_exists(enum bpf_func_id, BPF_FUNC_ktime_get_coarse_ns))
		return bpf_ktime_get_ns();
	tick = bpf_jiffies64();
	if (slot->tick != tick || !slot->is_now) {
		slot->is_now = slot->tick == tick;
		slot->tick = tick;
		slot->now_ns = bpf_ktime_get_coarse_ns();
	}
	return slot->now_ns;
}

static __always_inline struct open_set *set_of(__u64 cookie)
{
	__u32 index = cookie & (SETS - 1);
	return bpf_map_lookup_elem(&open, &index);
}

static __always_inline struct open *way_of(struct open_set *set, __u64 cookie)
{
	for (int i = 0; i < WAYS; i++) {
		if (set->ways[i].cookie == cookie)
			return &set->ways[i];
	}
	return 0;
}

static __always_inline struct open *open_of(__u64 cookie)
{
	struct open_set *set = set_of(cookie);
	return set && cookie ? way_of(set, cookie) : 0;
}

/* Where a socket that is bound now is noted. Where none of the set has been closed, one goes, and its end will be seen by nobody. */
static __always_inline struct open *room_for(__u64 cookie)
{
	struct open_set *set = set_of(cookie);
	struct open *room;

	if (!set)
		return 0;
	room = way_of(set, cookie);
	if (!room)
		room = way_of(set, 0);
	if (!room) {
		room = &set->ways[cookie / SETS & (WAYS - 1)];
		COUNT(lost);
	}
	room->cookie = cookie;
	return room;
}

static __always_inline struct slot *slot_at(__u32 index)
{
	return bpf_map_lookup_elem(&slots, &index);
}

static __always_inline struct slot *slot_of(__u32 tid)
{
	return slot_at(tid & (SLOTS - 1));
}

static __always_inline struct bind *bind_of(struct slot *slot, __u32 number)
{
	return &slot->binds[number & (BINDS - 1)];
}

/*
 * The socket of a slot's last bind. To be read before that bind is seen to be an attempt still: a thread that shares the slot
 * decides an attempt before it puts its own socket here.
 */
static __always_inline struct sock *last_socket(struct slot *slot)
{
	struct sock *sk = (struct sock *)*(volatile unsigned long long *)&slot->sk;

	barrier();
	return sk;
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

static __always_inline void recall(struct event *event, const struct bind *bind)
{
	event->at_ns = bind->at_ns;
	event->cookie = bind->cookie;
	event->pid = bind->pid;
	event->tid = bind->tid;
	event->port = bind->port;
	event->asked_port = bind->asked_port;
	event->netns = bind->netns;
	event->protocol = bind->protocol;
	event->family = bind->family;
	__builtin_memcpy(event->address, bind->address, sizeof(event->address));
}

/* Tells of a refusal. Mostly the current process is the one that was refused; another one's name must not be told for it. */
static __noinline void refuse(const struct bind *bind, struct sock *sk, unsigned char kind, int error, unsigned char flags)
{
	struct signed_event told = {};
	__u8 common[COMMON_BYTES];

	recall(&told.event, bind);
	told.event.kind = kind;
	told.event.error = error;
	told.event.flags = flags;
	if (sk && !bpf_probe_read_kernel(common, sizeof(common), sk))
		describe(&told.event, common);
	if (bpf_get_current_pid_tgid() >> 32 != bind->pid) {
		tell(&told, sizeof(told.event));
		return;
	}
	sign(&told.by);
	if (told.event.port && told.event.port < 1024 && may_bind_low())
		told.event.flags |= FLAG_PRIVILEGED;
	tell(&told, sizeof(told));
}

/*
 * Tells what has not been told of a slot's binds: the reader passes over those it has got already, since another core may do
 * the same now. The numbers change before the slot is read: whoever notes a close meanwhile sees that it has to be told.
 */
static __noinline void flush(struct slot *slot)
{
	__u32 end = slot->last + (bind_of(slot, slot->last)->stage == STAGE_BOUND);

	if (slot->told == end)
		return;
	slot->told = end;
	tell(slot, sizeof(*slot));
}

enum end { END_GONE, END_REFUSED, END_BOUND };

/*
 * How a slot's last attempt has ended, if its thread is in no bind any more: the socket is there still and has the port, or
 * has none. Whoever was refused may have got another one since, by connecting.
 */
static __always_inline int has_port(struct bind *bind, struct sock *sk)
{
	__u16 port = BPF_CORE_READ(sk, __sk_common.skc_num);

	if (!port)
		return 0;
	/* A program after ours may have chosen another port: then bind(2) has locked that one. */
	if (bind->asked_port && port != bind->asked_port && !(BPF_CORE_READ_BITFIELD_PROBED(sk, sk_userlocks) & SOCK_BINDPORT_LOCK))
		return 0;
	bind->port = port;
	bind->stage = STAGE_BOUND;
	return 1;
}

static __noinline int look_at(struct bind *bind, struct sock *sk)
{
	if (BPF_CORE_READ(sk, __sk_common.skc_cookie.counter) != bind->cookie)
		return END_GONE;
	/* Closed, and still in memory. */
	if (!BPF_CORE_READ(sk, __sk_common.skc_refcnt.refs.counter) || BPF_CORE_READ(sk, __sk_common.skc_flags) & 1UL << bpf_core_enum_value(enum sock_flags, SOCK_DEAD))
		return END_GONE;
	return has_port(bind, sk) ? END_BOUND : END_REFUSED;
}

/*
 * A slot's last attempt has ended without a port. Where the kernel was to choose one that is no refusal: with
 * IP_BIND_ADDRESS_NO_PORT it chooses at connect(2).
 */
static __noinline void refused(struct slot *slot, struct bind *bind, struct sock *sk, int error, unsigned char flags)
{
	struct open *open = open_of(bind->cookie);

	bind->stage = STAGE_NONE;
	if (open)
		open->cookie = 0;
	flush(slot);
	if (bind->port || error)
		refuse(bind, sk, KIND_BIND_FAILED, error, flags);
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

/* The bind that a new attempt of this thread is noted in; none while another thread is in the middle of one. */
static __always_inline struct bind *next_of(struct slot *slot, __u32 tid, __u64 now)
{
	struct bind *last = bind_of(slot, slot->last);
	struct sock *sk = last_socket(slot);

	if (last->stage == STAGE_ATTEMPT) {
		int end = look_at(last, sk);

		/*
		 * A thread does one thing after the other: its attempt before this one has ended. One of another thread that
		 * shares the slot may be in the middle of it.
		 */
		if (end == END_REFUSED && last->tid == tid) {
			refused(slot, last, sk, 0, 0);
		} else if (end == END_REFUSED && now - last->at_ns > LONG_AGO_NS) {
			refused(slot, last, 0, 0, FLAG_UNPROVEN);
		} else if (end != END_BOUND) {
			COUNT(lost);
			if (end == END_REFUSED)
				return 0;
			last->stage = STAGE_NONE;
		}
	}
	if (last->stage == STAGE_NONE)
		return last;
	if (slot->last + 1 - slot->told >= BINDS)
		flush(slot);
	slot->last++;
	return bind_of(slot, slot->last);
}

static __always_inline struct bind *note(struct bpf_sock_addr *ctx, unsigned char family, struct slot *slot, __u64 ids)
{
	unsigned char protocol = protocol_of(ctx->protocol);
	struct bpf_sock *socket = ctx->sk;
	__u64 now = ticked(slot);
	struct bind *bind;
	struct open *open;
	__u32 number;

	if (!protocol || !socket)
		return 0;
	bind = next_of(slot, ids, now);
	if (!bind)
		return 0;
	number = slot->last;
	bind->stage = STAGE_NONE;
	slot->kind = KIND_BINDS;
	slot->index = ids & (SLOTS - 1);
	/* As a number: it may be read by probes, when the socket is of no interest to the verifier any more. */
	slot->sk = (__u64)socket;
	bind->at_ns = now;
	bind->until_ns = 0;
	bind->cookie = bpf_get_socket_cookie(ctx);
	bind->pid = ids >> 32;
	bind->tid = ids;
	bind->netns = netns_inode(bpf_get_netns_cookie(ctx), socket);
	bind->port = __builtin_bswap16(ctx->user_port);
	bind->asked_port = bind->port;
	bind->protocol = protocol;
	bind->family = family;
	if (family == AF_INET) {
		*(__u32 *)&bind->address[0] = ctx->user_ip4;
	} else {
		*(__u32 *)&bind->address[0] = ctx->user_ip6[0];
		*(__u32 *)&bind->address[4] = ctx->user_ip6[1];
		*(__u32 *)&bind->address[8] = ctx->user_ip6[2];
		*(__u32 *)&bind->address[12] = ctx->user_ip6[3];
	}
	if (socket->src_port) {
		/* bind(2) refuses a socket that has a port. */
		flush(slot);
		refuse(bind, plain(socket), KIND_BIND_FAILED, -EINVAL, 0);
		return 0;
	}
	open = room_for(bind->cookie);
	if (open) {
		open->slot = ids & (SLOTS - 1);
		open->number = number;
	}
	return bind;
}

/*
 * Of threads that share a slot one at a time writes to it; what another one binds meanwhile is not seen, and said to be lost. An
 * addition that tells what was there before is of Linux 5.12: after a blind one whoever reads 1 is alone.
 */
static __always_inline int begin(struct bpf_sock_addr *ctx, unsigned char family)
{
	__u64 ids = bpf_get_current_pid_tgid();
	struct slot *slot = slot_of(ids);
	struct bind *bind;

	if (!slot)
		return 1;
	COUNT(attempts);
	__sync_fetch_and_add(&slot->busy, 1);
	if (*(volatile __u32 *)&slot->busy == 1) {
		bind = note(ctx, family, slot, ids);
		barrier();
		if (bind)
			bind->stage = STAGE_ATTEMPT;
	} else {
		COUNT(lost);
	}
	__sync_fetch_and_add(&slot->busy, -1);
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

SEC("cgroup/sock_release")
int sock_release(struct bpf_sock *ctx)
{
	__u64 cookie = bpf_get_socket_cookie(ctx);
	struct event event = {};
	struct open *open;
	struct slot *slot;
	struct bind *bind;
	struct sock *sk;
	__u64 now, ids;

	/* One of MPTCP leaves its port to a TCP socket behind it, which is released by nobody. */
	if (ctx->protocol == IPPROTO_MPTCP && bpf_core_field_exists(struct mptcp_sock, first)) {
		struct mptcp_sock *front = (struct mptcp_sock *)plain(ctx);

		cookie = BPF_CORE_READ(front, first, __sk_common.skc_cookie.counter);
	}
	open = open_of(cookie);
	if (!open)
		return 1;
	slot = slot_at(open->slot);
	if (!slot)
		return 1;
	bind = bind_of(slot, open->number);
	sk = last_socket(slot);
	now = ticked(slot);
	if (bind->cookie == cookie) {
		if (bind->stage == STAGE_ATTEMPT && !has_port(bind, sk)) {
			refused(slot, bind, sk, 0, 0);
			return 1;
		}
		bind->state = ctx->state;
		/* An atomic addition is a barrier too: either this is told with the bind, or the bind is seen to be told. */
		__sync_fetch_and_add(&bind->until_ns, now);
		if ((int)(slot->told - open->number) <= 0) {
			open->cookie = 0;
			return 1;
		}
	}
	open->cookie = 0;
	ids = bpf_get_current_pid_tgid();
	event.at_ns = now;
	event.kind = KIND_CLOSE;
	event.cookie = cookie;
	event.pid = ids >> 32;
	event.tid = ids;
	event.other = ctx->state;
	tell(&event, sizeof(event));
	return 1;
}

/* Has the slots of one part looked through, and tells of what they hold. The reader runs it when it wants to know. */
SEC("raw_tp")
int look_through(struct bpf_raw_tracepoint_args *ctx)
{
	__u32 first = (__u32)ctx->args[0] * LOOKED_THROUGH;
	__u64 now = bpf_ktime_get_ns();
	struct event event = {};

	for (__u32 i = 0; i < LOOKED_THROUGH; i++) {
		struct slot *slot = slot_at(first + i);
		struct bind *bind;
		struct sock *sk;
		int end;

		if (!slot)
			continue;
		bind = bind_of(slot, slot->last);
		sk = last_socket(slot);
		end = bind->stage == STAGE_ATTEMPT ? look_at(bind, sk) : END_GONE;
		flush(slot);
		if (end != END_REFUSED || bind->stage != STAGE_ATTEMPT)
			continue;
		recall(&event, bind);
		event.kind = KIND_UNDECIDED;
		event.flags = FLAG_UNPROVEN;
		event.other = (now - bind->at_ns) / 1000000;
		tell(&event, sizeof(event));
	}
	return 0;
}

/*
 * A listen that is refused shows as LISTEN and CLOSE in one call. What tells it from a listener's end is that it was never hashed:
 * the kernel marks a listener when it is (SOCK_RCU_FREE, `__inet_hash`). One that has listened before keeps the mark.
 */
SEC("tp_btf/inet_sock_set_state")
int BPF_PROG(state, struct sock *sk, int before, int after)
{
	struct bind bind = {};

	if (after == TCP_LISTEN) {
		COUNT(listens);
		return 0;
	}
	if (before != TCP_LISTEN || after != TCP_CLOSE)
		return 0;
	if (sk->__sk_common.skc_flags & 1UL << bpf_core_enum_value(enum sock_flags, SOCK_RCU_FREE))
		return 0;
	bind.at_ns = bpf_ktime_get_ns();
	/* The cookie is read, not asked for: the helper is allowed here since Linux 5.12 only. */
	bind.cookie = sk->__sk_common.skc_cookie.counter;
	bind.pid = bpf_get_current_pid_tgid() >> 32;
	bind.tid = bpf_get_current_pid_tgid();
	bind.port = sk->__sk_common.skc_num;
	bind.asked_port = bind.port;
	bind.protocol = IPPROTO_TCP;
	bind.family = sk->__sk_common.skc_family;
	if (bind.family == AF_INET)
		*(__u32 *)&bind.address[0] = sk->__sk_common.skc_rcv_saddr;
	else
		__builtin_memcpy(bind.address, &sk->__sk_common.skc_v6_rcv_saddr, sizeof(bind.address));
	refuse(&bind, sk, KIND_LISTEN_FAILED, 0, 0);
	return 0;
}

static __always_inline void bind_ended(struct socket *socket, int result)
{
	struct slot *slot;
	struct bind *bind;

	if (result >= 0 || !socket->sk)
		return;
	slot = slot_of(bpf_get_current_pid_tgid());
	if (!slot)
		return;
	bind = bind_of(slot, slot->last);
	if (bind->stage == STAGE_ATTEMPT && bind->cookie == (__u64)socket->sk->__sk_common.skc_cookie.counter)
		refused(slot, bind, socket->sk, result, 0);
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

/* The current thread is about to become another program, or nobody: what it has bound as what it is now is told before. */
static __always_inline void flush_own(__u32 tid)
{
	struct slot *slot = slot_of(tid);
	struct bind *bind;
	struct sock *sk;

	if (!slot)
		return;
	bind = bind_of(slot, slot->last);
	sk = last_socket(slot);
	if (bind->stage == STAGE_ATTEMPT && bind->tid == tid)
		look_at(bind, sk);
	flush(slot);
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
	/* Whichever thread it was, it has the number of the first by now. */
	flush_own(old_pid);
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

	flush_own(task->pid);
	/* Threads end one by one; the process ends with the last. */
	if (task->signal->live.counter != 0)
		return 0;
	now(&told, KIND_EXIT);
	/* As wait(2) will tell it. */
	if (task->signal->flags & SIGNAL_GROUP_EXIT)
		told.event.other = task->signal->group_exit_code;
	else
		told.event.other = task->group_leader->exit_code;
	tell(&told, sizeof(told));
	return 0;
}

/* The argument is a task since Linux 6.8, and was the number of its thread before. */
SEC("raw_tp")
int oom_killed(struct bpf_raw_tracepoint_args *ctx)
{
	struct event event = {};

	event.at_ns = bpf_ktime_get_ns();
	event.kind = KIND_OOM;
	event.pid = ctx->args[0];
	if (ctx->args[0] >> 32)
		event.pid = BPF_CORE_READ((struct task_struct *)ctx->args[0], tgid);
	tell(&event, sizeof(event));
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
