/* SPDX-License-Identifier: MIT OR Apache-2.0 */
/*
 * The kernel's structs as far as they are used here. Offsets are the running kernel's: the loader relocates every access
 * (CO-RE), so only names and types of members count. Names ending in ___x are other kernels' shapes of the same struct.
 */
#ifndef SNIFFER_KERNEL_H
#define SNIFFER_KERNEL_H

#include <linux/bpf.h>
#include <linux/types.h>

#include <bpf/bpf_helpers.h>
#include <bpf/bpf_core_read.h>
#include <bpf/bpf_tracing.h>

#define SHARED __attribute__((preserve_access_index))

/* include/linux/socket.h, include/uapi/linux/in.h, include/net/tcp_states.h, include/uapi/linux/magic.h */
#define AF_INET 2
#define AF_INET6 10
#define IPPROTO_TCP 6
#define IPPROTO_UDP 17
#define IPPROTO_MPTCP 262
#define TCP_CLOSE 7
#define TCP_LISTEN 10
#define NSFS_MAGIC 0x6e736673
#define S_IFMT 0170000
#define S_IFSOCK 0140000
/* include/uapi/linux/capability.h */
#define CAP_NET_BIND_SERVICE 10
/* include/net/sock.h */
#define SK_CAN_REUSE 1
#define SOCK_BINDPORT_LOCK 8
enum sock_flags { SOCK_DEAD, SOCK_RCU_FREE };
/* include/uapi/asm-generic/errno-base.h */
#define EINVAL 22

typedef struct { long long counter; } atomic64_t;
typedef struct { int counter; } atomic_t;
typedef struct { atomic_t refs; } refcount_t;

struct ns_common { unsigned int inum; } SHARED;
struct net { struct ns_common ns; } SHARED;
typedef struct { struct net *net; } possible_net_t;

struct in6_addr___k { unsigned char bytes[16]; };

struct sock_common {
	unsigned short skc_num;
	unsigned int skc_rcv_saddr;
	unsigned short skc_family;
	unsigned char skc_reuse : 4;
	unsigned char skc_reuseport : 1;
	unsigned char skc_ipv6only : 1;
	unsigned char skc_state;
	int skc_bound_dev_if;
	possible_net_t skc_net;
	struct in6_addr___k skc_v6_rcv_saddr;
	atomic64_t skc_cookie;
	unsigned long skc_flags;
	refcount_t skc_refcnt;
} SHARED;

struct socket;
struct sock {
	struct sock_common __sk_common;
	unsigned short sk_protocol;
	unsigned char sk_userlocks : 4;
} SHARED;
struct socket { struct sock *sk; } SHARED;
/* The TCP socket behind one of MPTCP. */
struct mptcp_sock { struct sock *first; } SHARED;
struct inet_sock { struct sock sk; } SHARED;
struct udp_sock { struct inet_sock inet; } SHARED;

struct nsproxy { struct net *net_ns; } SHARED;
struct mm_struct { unsigned long arg_start, arg_end, env_start, env_end; } SHARED;
/* include/linux/sched/signal.h */
#define SIGNAL_GROUP_EXIT 0x4
struct signal_struct {
	atomic_t live;
	int group_exit_code;
	unsigned int flags;
} SHARED;
/* One number since Linux 6.3, two halves before: in either case 8 bytes with the low half first. */
struct kernel_cap_struct { __u64 val; };
struct cred { struct kernel_cap_struct cap_effective; } SHARED;
struct task_struct {
	int pid;
	int tgid;
	int exit_code;
	__u64 start_boottime;
	struct task_struct *group_leader;
	struct task_struct *real_parent;
	struct nsproxy *nsproxy;
	struct mm_struct *mm;
	struct signal_struct *signal;
	const struct cred *cred;
} SHARED;

struct linux_binprm { const char *interp; } SHARED;

struct super_block { unsigned long s_magic; } SHARED;
struct kuid { unsigned int val; };
typedef struct kuid kuid_t;
struct inode {
	unsigned short i_mode;
	kuid_t i_uid;
	unsigned long i_ino;
	struct super_block *i_sb;
} SHARED;
struct file {
	struct inode *f_inode;
	void *private_data;
} SHARED;

/* kernel/bpf/task_iter.c, net/ipv4/tcp_ipv4.c, net/ipv4/udp.c */
struct seq_file;
struct bpf_iter_meta { struct seq_file *seq; } SHARED;
struct bpf_iter__task_file {
	struct bpf_iter_meta *meta;
	struct task_struct *task;
	__u32 fd;
	struct file *file;
} SHARED;
struct bpf_iter__tcp {
	struct bpf_iter_meta *meta;
	struct sock_common *sk_common;
} SHARED;
struct bpf_iter__udp {
	struct bpf_iter_meta *meta;
	struct udp_sock *udp_sk;
} SHARED;

#endif
