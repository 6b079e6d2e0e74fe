/* SPDX-License-Identifier: BSD-3-Clause */
/* What darwinkit needs and the GCC Objective-C runtime lacks. Functions no test uses abort(). */
#import <objc/runtime.h>
#import <Foundation/Foundation.h>
#include <pthread.h>
#include <stdio.h>
#define NOPE(n) do { fprintf(stderr, "dkshim: %s is not available on the GCC runtime\n", n); abort(); } while (0)
IMP imp_implementationWithBlock(id b) { NOPE("imp_implementationWithBlock"); }
id imp_getBlock(IMP i) { NOPE("imp_getBlock"); }
BOOL imp_removeBlock(IMP i) { NOPE("imp_removeBlock"); }
char *property_copyAttributeValue(objc_property_t p, const char *name) { NOPE("property_copyAttributeValue"); }
objc_property_attribute_t *property_copyAttributeList(objc_property_t p, unsigned int *n) { NOPE("property_copyAttributeList"); }
BOOL class_addProperty(Class c, const char *name, const objc_property_attribute_t *a, unsigned int n) { NOPE("class_addProperty"); }
void class_replaceProperty(Class c, const char *name, const objc_property_attribute_t *a, unsigned int n) { NOPE("class_replaceProperty"); }
Protocol *objc_allocateProtocol(const char *name) { NOPE("objc_allocateProtocol"); }
IMP class_getMethodImplementation_stret(Class c, SEL s) { return class_getMethodImplementation(c, s); }

/* associated objects: a table that lives until the process ends (policy honoured for retain/copy only) */
static pthread_mutex_t mu = PTHREAD_MUTEX_INITIALIZER;
static struct ent { id o; const void *k; id v; struct ent *next; } *tab;
void objc_setAssociatedObject(id o, const void *key, id value, uintptr_t policy) {
  if (policy == 1 || policy == 01401) [value retain];
  if (policy == 3 || policy == 01403) value = [value copy];
  pthread_mutex_lock(&mu);
  struct ent *e; for (e = tab; e; e = e->next) if (e->o == o && e->k == key) break;
  if (!e) { e = calloc(1, sizeof *e); e->o = o; e->k = key; e->next = tab; tab = e; }
  e->v = value;
  pthread_mutex_unlock(&mu);
}
id objc_getAssociatedObject(id o, const void *key) {
  id r = nil; pthread_mutex_lock(&mu);
  for (struct ent *e = tab; e; e = e->next) if (e->o == o && e->k == key) { r = e->v; break; }
  pthread_mutex_unlock(&mu); return r;
}
void objc_removeAssociatedObjects(id o) {
  pthread_mutex_lock(&mu);
  for (struct ent **p = &tab; *p;) { struct ent *e = *p; if (e->o == o) { *p = e->next; [e->v release]; free(e); } else p = &e->next; }
  pthread_mutex_unlock(&mu);
}
void *dispatch_get_main_queue(void) { NOPE("dispatch"); }
void *dispatch_get_global_queue(intptr_t i, uintptr_t f) { NOPE("dispatch"); }
void dispatch_retain(void *o) { NOPE("dispatch"); }
void dispatch_release(void *o) { NOPE("dispatch"); }
void dispatch_async(void *q, void (^b)(void)) { NOPE("dispatch"); }
void dispatch_sync(void *q, void (^b)(void)) { NOPE("dispatch"); }

/* -[NSUserDefaults initWithSuiteName:] for GNUstep base 1.28: a persistent domain of the standard defaults */
@interface DKSuiteDefaults : NSObject { NSString *name; }
@end
@implementation DKSuiteDefaults
- (id)initWithName:(NSString *)n { if ((self = [super init])) name = [n copy]; return self; }
- (void)dealloc { [name release]; [super dealloc]; }
- (NSDictionary *)domain { return [[NSUserDefaults standardUserDefaults] persistentDomainForName: name]; }
- (id)objectForKey:(NSString *)k { return [[self domain] objectForKey: k]; }
- (id)dataForKey:(NSString *)k { id o = [self objectForKey: k]; return [o isKindOfClass: [NSData class]] ? o : nil; }
- (void)change:(NSString *)k to:(id)o
{
  NSMutableDictionary *d = [[[self domain] mutableCopy] autorelease];
  if (!d) d = [NSMutableDictionary dictionary];
  if (o) [d setObject: o forKey: k]; else [d removeObjectForKey: k];
  [[NSUserDefaults standardUserDefaults] setPersistentDomain: d forName: name];
}
- (void)setObject:(id)o forKey:(NSString *)k { [self change: k to: o]; }
- (void)removeObjectForKey:(NSString *)k { [self change: k to: nil]; }
- (BOOL)synchronize { return [[NSUserDefaults standardUserDefaults] synchronize]; }
@end
@implementation NSUserDefaults (DKSuite)
- (id)initWithSuiteName:(NSString *)n { [self release]; return (id)[[DKSuiteDefaults alloc] initWithName: n]; }
@end

/* The GCC runtime sends +initialize to a class with a lock held that GNUstep's own locks can meet in the other order. Apple's has no
 * such fault; here the main thread gets most of it done before there is another. No selector of this file is registered yet. */
IMP objc_msg_lookup(id, SEL);
static id tell(id to, const char *what)
{
  SEL s = sel_registerName(what);
  return to ? ((id (*)(id, SEL))objc_msg_lookup(to, s))(to, s) : nil;
}
__attribute__((constructor)) static void ready(void)
{
  static const char *const names[] = { "NSThread", "NSRunLoop", "NSPort", "NSMessagePort", "NSString", "NSMutableString", "NSConstantString",
    "NSData", "NSMutableData", "NSArray", "NSMutableArray", "NSDictionary", "NSMutableDictionary", "NSNumber", "NSDate", "NSError", "NSNull", "NSTimer", "NSLock",
    "NSRecursiveLock", "NSCondition", "NSFileManager", "NSUserDefaults", "NSProcessInfo", "NSCharacterSet", "NSNotificationCenter", "NSException", "NSBundle",
    "NSLocale", "NSURL", "NSInvocation", "NSMethodSignature", "NSMapTable", "NSHashTable", "NSSet", "NSMutableSet", "NSValue", "NSPropertyListSerialization" };
  id pool = tell((id)objc_lookUpClass("NSAutoreleasePool"), "new");
  for (unsigned i = 0; i < sizeof names / sizeof *names; i++)
    tell((id)objc_lookUpClass(names[i]), "class");
  tell((id)objc_lookUpClass("NSThread"), "currentThread");
  tell((id)objc_lookUpClass("NSRunLoop"), "mainRunLoop");
  tell((id)objc_lookUpClass("NSPort"), "port");
  tell((id)objc_lookUpClass("NSUserDefaults"), "standardUserDefaults");
  tell((id)objc_lookUpClass("NSFileManager"), "defaultManager");
  tell(tell((id)objc_lookUpClass("NSProcessInfo"), "processInfo"), "globallyUniqueString");
  tell(tell((id)objc_lookUpClass("NSMutableArray"), "array"), "description");
  tell(tell((id)objc_lookUpClass("NSMutableDictionary"), "dictionary"), "description");
  tell(pool, "release");
}
