/* SPDX-License-Identifier: BSD-3-Clause */

#include <objc/objc.h>

/* Methods of the delegate class. */
void vmux_mpc_state(id self, SEL cmd, id session, id peer, long state);
void vmux_mpc_data(id self, SEL cmd, id session, id data, id peer);
void vmux_mpc_stream(id self, SEL cmd, id session, id stream, id name, id peer);
void vmux_mpc_resource(id self, SEL cmd, id session, id name, id peer, id progress);
void vmux_mpc_resource_end(id self, SEL cmd, id session, id name, id peer, id url, id error);
void vmux_mpc_found(id self, SEL cmd, id browser, id peer, id info);
void vmux_mpc_lost(id self, SEL cmd, id browser, id peer);
void vmux_mpc_failed(id self, SEL cmd, id from, id error);
void vmux_mpc_invited(id self, SEL cmd, id advertiser, id peer, id context, void *handler);

/* Answers an invitation by its handler, a block that was copied, and releases that. */
void vmux_mpc_answer(void *handler, int take, void *session);
